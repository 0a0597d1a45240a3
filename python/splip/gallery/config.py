"""Settings of the `splip index` verbs and of `splip search`."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

WHERE = "(default: $SPLIP_GALLERY, or splip/gallery in your data folder)"
ADDRESS = "milvus:"
DEFAULT_MODEL = "open_clip:splip-tiny-3"  # of the package: works without a download


def default_gallery() -> Path:
    """The gallery of those who have one: ``$SPLIP_GALLERY``, or ``splip/gallery`` in the user's data folder."""
    named = _named()
    if named and not named.startswith(ADDRESS):  # which is no folder: it serves searches alone
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(data) / "splip" / "gallery"


def default_address() -> str:
    """The same as text: beside folders there are addresses."""
    named = _named()
    return named if named.startswith(ADDRESS) else str(default_gallery())


def _named() -> str:
    return os.environ.get("SPLIP_GALLERY", "")


Folder = Annotated[Path, tyro.conf.arg(help_behavior_hint=WHERE)]
Address = Annotated[str, tyro.conf.arg(help_behavior_hint=WHERE)]


@dataclass
class IndexAddConfig:
    """Embed the pictures of folders and keep them in a gallery; pictures that it holds unchanged are passed over."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of pictures, searched through all levels but for hidden ones, single pictures, tar files of pictures
    (WebDataset), or @FILE as --list FILE."""
    gallery: Folder = field(default_factory=default_gallery)
    """Folder of the gallery; made if it is not there."""
    model: str | None = None
    """The model by any name: a run or its checkpoint, an export folder, vit-b-32, open_clip:NAME/TAG, hf-hub:OWNER/NAME; see
    `splip models`. A new gallery keeps it. Default: the gallery's own; of a new one splip-tiny-3, which is in the package."""
    dimensions: int | None = None
    """Of a new gallery: components of its vectors, a size that the model was trained for with --loss.matryoshka; none: all."""
    list: tuple[Path, ...] = ()
    """Files with one path a line, or ended by zero bytes as `find -print0` does; relative ones from the list's folder."""
    label_from: Literal["folder", "top", "none"] = "folder"
    """The label of a picture: its folder's name, the name of the first folder below the one given, or none."""
    label: str | None = None
    """One label for all instead."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE for all of these pictures."""
    batch_size: int = 64
    """Pictures per pass of the encoder."""
    threads: int | None = None
    """Threads that read and decode; none: one for each processor."""
    thumbnails: bool = False
    """Keep small versions of the pictures in the gallery, made while they are decoded, for the service's page: some 15 kB each.
    Once a gallery has some, later additions keep theirs, too."""
    memory_gb: float = 1.5
    """For all pictures that are being read, files and pixels; one that needs more is read alone."""
    engine: str = "auto"
    """What encodes: auto, torch, compile, onnxruntime, openvino, tensorrt; or ray: the machines of a Ray cluster."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    encoder: str = "auto"
    """With --engine ray, what encodes on the machines: auto, torch, compile, onnxruntime, openvino, tensorrt."""
    address: str = "auto"
    """With --engine ray: HOST:PORT of the cluster's head; auto: the cluster that this machine belongs to; local: one made
    of this machine for as long as the command runs."""
    workers: int | None = None
    """With --engine ray: processes that encode; none: one for each GPU, without GPUs one for each machine."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexRemoveConfig:
    """Take pictures out of a gallery; their files stay. Conditions beside each other must all hold."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, or folders of them."""
    gallery: Path
    """Folder of the gallery."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Those with this label."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Those with this tag, KEY=VALUE."""
    under: Path | None = None
    """Those in this folder, at any depth."""
    missing: bool = False
    """Those whose files are gone."""
    dry_run: bool = False
    """Only print what would be taken out."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexListConfig:
    """Print what a gallery holds: id, date, label, path and tags of each picture."""

    gallery: Folder = field(default_factory=default_gallery)
    """Folder of the gallery."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this label."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this tag, KEY=VALUE."""
    under: Path | None = None
    """Only pictures in this folder, at any depth."""
    taken_from: str | None = None
    """Only pictures taken then or later: a year, a month or a day, 2019, 2019-07 or 2019-07-14. Those without a date do not pass."""
    taken_to: str | None = None
    """Only pictures taken then or earlier."""
    min_side: int | None = None
    """Only pictures of so many pixels on the shorter side, or more."""
    sort: Literal["newest", "oldest", "name", "added"] | None = None
    """By when they were taken (undated ones last, by the time of their file), by path, or the last added first; none: by id."""
    labels: bool = False
    """Print the labels and how many pictures have each instead."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexCheckConfig:
    """Compare a gallery with its checksums; exit code 1 if anything is damaged."""

    gallery: Folder = field(default_factory=default_gallery)
    """Folder of the gallery."""
    pictures: bool = True
    """Also look whether the files of its pictures are still there."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexCompactConfig:
    """Give back the room of removed pictures."""

    gallery: Folder = field(default_factory=default_gallery)
    """Folder of the gallery."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexExportConfig:
    """Write the vectors (vectors.npy) and what is known of the pictures (items.csv or items.parquet) to a folder."""

    gallery: Path
    """Folder of the gallery."""
    out: Path
    """Folder to make."""
    format: Literal["csv", "parquet"] = "csv"
    """parquet needs pyarrow."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this label."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this tag, KEY=VALUE."""
    under: Path | None = None
    """Only pictures in this folder, at any depth."""
    json: bool = False
    """Print JSON."""


@dataclass
class IndexPushConfig:
    """Make a Milvus collection hold what a gallery holds; what is there unchanged is passed over."""

    gallery: Path
    """Folder of the gallery."""
    to: str
    """milvus://HOST:PORT/COLLECTION, or milvus:FILE.db/COLLECTION for Milvus Lite; made if it is not there. Options behind
    a ?: database=NAME, tls=on, consistency=bounded. The environment's MILVUS_TOKEN is user:password or a key."""
    replace: bool = False
    """Drop a collection that another gallery or another model filled."""
    json: bool = False
    """Print JSON."""


@dataclass
class SearchConfig:
    """Find the pictures of a gallery that match a drawing, a picture, words, or a drawing and words together."""

    gallery: Address = field(default_factory=default_address)
    """Folder of the gallery, see `splip index add`, or the milvus: address of a collection, see `splip index push`."""
    sketch: tuple[str, ...] = ()
    """One or more drawings, dark on white or on transparency. FILE:0.5 is a drawing with a weight, see --one."""
    photo: tuple[str, ...] = ()
    """One or more pictures to find similar ones of; FILE or FILE:WEIGHT."""
    text: tuple[str, ...] = ()
    """What is to be seen, e.g. 'red car': the model reads it as `photo of a red car`. Beside drawings or pictures: one for
    all, or one for each. Words or WORDS:WEIGHT."""
    not_sketch: tuple[str, ...] = ()
    """Drawings of what is not meant; FILE or FILE:WEIGHT, without one half of what is looked for."""
    not_photo: tuple[str, ...] = ()
    """Pictures that others must not be like; FILE or FILE:WEIGHT."""
    not_text: tuple[str, ...] = ()
    """What is not to be seen; words or WORDS:WEIGHT."""
    one: bool = False
    """All drawings, pictures and words are one query: the sum of their vectors, each with its weight (1 where none is given). So
    they are, too, where a weight or a --not-... is given. Else each drawing and picture is a query of its own."""
    text_weight: float = 0.5
    """Share of the words in a query of both: 0 is the drawing alone, 1 the words alone."""
    k: int = 10
    """Pictures to find per query."""
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this label; given several times, with one of them."""
    tag: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only pictures with this tag, KEY=VALUE; given several times, with all of them."""
    under: Path | None = None
    """Only pictures in this folder, at any depth."""
    taken_from: str | None = None
    """Only pictures taken then or later: a year, a month or a day, 2019, 2019-07 or 2019-07-14. Those without a date do not pass."""
    taken_to: str | None = None
    """Only pictures taken then or earlier."""
    min_side: int | None = None
    """Only pictures of so many pixels on the shorter side, or more."""
    stack: bool = True
    """Pictures of the same content are one of the k; --no-stack: each copy is a picture of its own."""
    json: bool = False
    """Print JSON instead of a table."""
    grid: Path | None = None
    """Write the queries and what they find as a picture to this file."""
    explain: bool = False
    """With --grid: colour in each picture where the score comes from."""
    model: str | None = None
    """The model by any name, in place of the gallery's own; must be the same model. Milvus has none."""
    engine: str = "auto"
    """What encodes the queries: auto, torch, compile, onnxruntime, openvino, tensorrt; or ray: see `splip serve`."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    encoder: str = "auto"
    """With --engine ray, what encodes the queries."""
    address: str = "auto"
    """With --engine ray: HOST:PORT of the cluster's head, auto or local."""
    shards: int | None = None
    """With --engine ray: parts of the gallery; none: one for each machine."""
