"""What a run writes down on its way: log.csv, TensorBoard, and the bar on the terminal."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from splip import disk, distributed
from splip.errors import UserError
from splip.evaluation.prompts import CHANGES
from splip.models.config import LossConfig
from splip.progress import bars
from splip.train.terms import weights

Row = dict[str, Any]
MEASURED = ("val_mAP", "val_Acc1", *(f"val_mAP_{change}" for change in CHANGES), "val_attention")


def columns(loss: LossConfig) -> list[str]:
    """Of log.csv: all terms, whatever their weights; with the prompts removed or swapped, and attention on them."""
    return ["step", "loss", *weights(loss), "lr", "seconds", *MEASURED]


def need_tensorboard() -> Any:
    """TensorBoard's writer of events.

    Raises:
        UserError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError('--tensorboard needs TensorBoard: pip install "splip[tensorboard]"') from None
    return SummaryWriter


def trim(path: Path, step: int, names: list[str]) -> None:
    """Drop rows after the checkpoint that training goes on from; columns that its version did not have are empty."""
    if not path.is_file() or distributed.rank() != 0:
        return
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = [r for r in reader if int(r["step"]) <= step]
    with disk.replacing(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def writing(path: Path, names: list[str], events: Any) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row to log.csv, and to TensorBoard if there is a writer; only the first process writes."""
    if distributed.rank() != 0:
        yield lambda row: None
        return
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        if new:
            table.writeheader()

        def write(row: Row) -> None:
            table.writerow(row)
            file.flush()
            for name, value in row.items() if events is not None else ():
                if name not in ("step", "seconds"):
                    kind = "validation/" if name.startswith("val") else "train/"
                    events.add_scalar(kind + name, float(value), row["step"])

        try:
            yield write
        finally:
            if events is not None:
                events.close()


def progress() -> Progress:
    """The bar of a run, with its loss and the last measurement."""
    return bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  val mAP {task.fields[val]:.1f}%"),
        TimeRemainingColumn(),
        transient=False,
        lines=False,  # the loop prints its rows
    )
