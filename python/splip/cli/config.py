"""Settings of the demo, of sweeps, of lists of models, of the hub, of completion and of `splip info`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass
class DemoConfig:
    """The whole way on the sample data: unpack, train, measure, index, search, and a page to look at."""

    out: Path = Path("demo")
    """Folder of the results; what exists in it is used again."""
    steps: int | None = None
    """Training steps; default: those of the configuration `sample`."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    open: bool = False
    """At the end, serve the gallery and open the page to draw on in a browser; Ctrl-C ends it."""


@dataclass
class SweepConfig:
    """Train and measure a row of configurations, each over several seeds, and make a table and a plot of it."""

    rows: tuple[str, ...]
    """Configurations that each change something: shipped names (ablations/* for all of a folder) or files.
    The plot compares with the one called full, else with the first."""
    config: tuple[str, ...] = ()
    """Configurations that all rows start from."""
    set: tuple[str, ...] = ()
    """Settings of all rows, e.g. data.root=sample steps=300; they win over the files."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every row; the seed changes new weights, batches and augmentation."""
    out: Path = Path("runs/sweep")
    """Folder of the runs, table.md, results.json and plot.png; finished runs in it are used again."""
    protocol: Literal["zs", "gzs", "fg"] = "zs"
    """What is measured on the unseen classes, see `splip eval`."""
    metric: str = "mAP@all"
    """The metric that the plot shows."""
    jobs: int = 1
    """Runs at the same time, each with its share of the CPU's cores."""


@dataclass
class CompletionConfig:
    """Print a script that lets a shell complete what is typed after `splip`; it starts no Python while you type."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Which one."""


@dataclass
class InfoConfig:
    """Print versions, instruction sets, the CUDA build and GPUs; paste it in a bug report."""

    json: bool = False
    """Print JSON."""


@dataclass
class PushConfig:
    """Push a trained model, an export or a gallery to the Hugging Face Hub, with a card that says what it is."""

    what: tyro.conf.Positional[Path]
    """A run, its best.safetensors, a folder that `splip export` wrote, or a gallery."""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME; made if it is not there: of models, for a gallery of data sets."""
    private: bool = False
    """If it is made: for its owner's eyes only."""
    message: str = ""
    """Of the commit."""
    results: Path | None = None
    """results.json of `splip eval --out`, for the card."""
    license: str | None = None
    """As the hub names it, e.g. mit; none: that of the backbone's weights if it is known, else other."""


@dataclass
class PullConfig:
    """Bring a gallery, a model or an export from the Hugging Face Hub into a folder."""

    repository: tyro.conf.Positional[str]
    """OWNER/NAME, or OWNER/NAME@REVISION."""
    out: Path
    """Folder to make."""


@dataclass
class ModelsConfig:
    """List the models that have short names: what `--model NAME` takes everywhere."""

    json: bool = False
    """Print JSON."""
    measure: tuple[str, ...] | None = None
    """Measure these (without names: all) on this machine, with random weights, which take as long as trained ones;
    the figures are kept for later lists."""
    threads: int | None = None
    """With --measure: CPU threads; none: as many as torch takes."""
