"""Settings of `splip eval`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class EvalConfig:
    """Measure retrieval on classes that training never saw; print a table, write results and pictures."""

    model: Annotated[str | None, tyro.conf.arg(aliases=["--checkpoint"])] = None
    """A run, its best.safetensors, or any other name of a model, see `splip models`."""
    root: Path | None = None
    """Folder of the data set; default: the one the checkpoint was trained on."""
    features: tuple[Path, ...] = ()
    """Instead: features of sketches and of photos by any method, two .npy files of numbers [rows, D]; with --labels."""
    labels: tuple[Path, ...] = ()
    """With --features: classes of the sketches and of the photos, two files, .npy or a text with one a line."""
    instances: tuple[Path, ...] = ()
    """With --features: what each sketch and photo shows, two such files, for Acc@k."""
    dataset: Literal["tree", "sketchy", "tuberlin", "quickdraw"] | None = None
    """Test on another data set, with its own split; default: the kind the checkpoint was trained on."""
    split: str | None = None
    """Named split of the data set; default: the checkpoint's, or the usual one of another data set."""
    classes: Literal["unseen", "validation"] = "unseen"
    """Which of the held-out classes to measure."""
    protocol: Literal["zs", "gzs", "fg"] = "zs"
    """zs: photos of the same classes; gzs: photos of seen classes among them; fg: find the very photo."""
    gallery: tuple[Literal["sempcyc", "sempcyc-queries", "per-class-20", "all", "per-class", "paired-photo"], ...] = ()
    """zs: paired-photo; gzs: sempcyc (default), sempcyc-queries, per-class-20, all; fg: per-class, all (default: both). See
    metrics and protocols in the docs."""
    support: int = 0
    """fg with the gallery per-class, method dp-clip: adapt it to each class by so many of the gallery's photos. They are shown
    with their labels, which no other method sees: what it gives is no zero-shot number."""
    duplicates: bool = False
    """zs on a benchmark: also measure with photos that lie in two folders counted twice, as published galleries do."""
    k: tuple[int, ...] = ()
    """Ranks of mAP@k and P@k (fg: Acc@k). Default: P@10 for a tree, 100 200 for the benchmarks; fg: 1 5 10."""
    metrics: Literal["standard", "all", "zse", "sake", "sempcyc", "clip-at"] = "standard"
    """all: mAP@k with each denominator and interpolated, P@k with each. Or the columns that the released code of others
    prints, see metrics and protocols in the docs."""
    dimensions: tuple[int, ...] = ()
    """Also measure vectors cut to these sizes, which the checkpoint was trained for with --loss.matryoshka."""
    seed: int = 0
    """Seed of the seen photos of gzs, and of ties in the choice of queries for pictures."""
    prompts: bool = True
    """Also measure without the visual prompts, and with the other modality's: what they are worth."""
    partial: bool = False
    """Instead: measure unfinished sketches, their first strokes by length, as the page searches while somebody draws."""
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """With --partial: shares of the length of all strokes."""
    strokes: Path | None = None
    """With --partial: folder of the sketches' strokes, QuickDraw's CLASS.ndjson or CLASS/NAME.svg; none: lines of the pictures
    are traced, in an order that is a guess."""
    frame: Literal["page", "whole"] = "page"
    """With --partial, of models whose sketches are cropped: page: to what is drawn so far, as when somebody draws; whole: to
    what it will be."""
    baselines: bool = False
    """Also measure chance, raw pixels, HOG (needs scikit-image) and the plain backbone."""
    out: Path | None = None
    """Folder for results.json, per_class.csv, gallery.txt, confusion.png and best, median and worst.png."""
    json: Path | None = None
    """Write the results to this file; - prints them, and nothing else, on stdout."""
    per_query: Path | None = None
    """Write the values of every query to this CSV file, see `splip compare`."""
    grid: Path | None = None
    """Write a picture of some queries and what they find to this file."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


@dataclass
class CompareConfig:
    """Test whether two methods differ by more than the choice of queries, or of classes, explains: a paired bootstrap."""

    a: tyro.conf.Positional[Path]
    """CSV of `splip eval --per-query`."""
    b: tyro.conf.Positional[Path]
    """Another one, of the same queries; or the same file, with --methods."""
    column: str | None = None
    """The metric; none: the first one."""
    methods: tuple[str, ...] = ()
    """The method of each file, one name for both or two; none: the first of each."""
    protocol: str | None = None
    """none: the first one."""
    samples: int = 10_000
    """How often to draw."""
    seed: int = 0
    """Of the draws."""
    json: Path | None = None
    """Write the result to this file; - prints it, and nothing else, on stdout."""
