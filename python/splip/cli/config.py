"""Settings of the demo, of sweeps and of `splip info`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class DemoConfig:
    """The whole way on the sample data: unpack, train, measure, index, search, and a page to look at."""

    out: Path = Path("demo")
    """Folder of the results; what exists in it is used again."""
    steps: int | None = None
    """Training steps; default: those of the configuration `sample`."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""


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
class InfoConfig:
    """Print versions, instruction sets, the CUDA build and GPUs; paste it in a bug report."""
