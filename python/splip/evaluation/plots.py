"""Pictures of results that need matplotlib (``pip install "splip[plot]"``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from splip.errors import UserError

NAME = 24  # letters of a class that fit beside a matrix


def need() -> None:
    """Say that matplotlib is missing before any work is done."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError('pictures of results need matplotlib: pip install "splip[plot]"') from None


def confusion(path: Path, share: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """A matrix of shares as a heat map, with percentages in the cells.

    Args:
        path: of the picture.
        share: ``[len(rows), len(columns)]``, 0 to 1.
        rows: classes of sketches.
        columns: classes of photos: the same, and perhaps more.
        title: of the picture.
    """
    from matplotlib.figure import Figure  # no pyplot: no state, no display
    from matplotlib.patches import Rectangle

    # Cells large enough for two digits, as long as the picture is not huge.
    cell = 0.36 if len(rows) <= 40 else 0.2
    # Text takes its own space: margins in inches, not in shares of a picture that grows with the classes.
    left, right, top, bottom = 2.2, 1.1, 1.0, 2.0
    width, height = max(3.0, cell * len(columns)), max(2.0, cell * len(rows))
    size = (left + width + right, top + height + bottom)
    figure = Figure(figsize=size, dpi=130)
    axes = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    short = [name if len(name) <= NAME else name[: NAME - 1] + "…" for name in (*rows, *columns)]
    axes.set_xticks(
        range(len(columns)), short[len(rows) :], rotation=60, ha="right", rotation_mode="anchor", fontsize=9
    )
    axes.set_yticks(range(len(rows)), short[: len(rows)], fontsize=9)
    axes.set_xlabel("class of the photo", fontsize=10)
    axes.set_ylabel("class of the sketch", fontsize=10)
    axes.set_title(title, fontsize=12, loc="left", pad=10)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e6e8eb", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#c9ccd1")
    if len(rows) <= 40:
        for r, c in zip(*np.nonzero(share >= 0.005), strict=True):
            ink = "white" if share[r, c] > 0.55 else "#1f2328"
            axes.text(c, r, f"{100 * share[r, c]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    for i in range(len(rows)):  # where the classes agree; the columns begin with the rows' classes
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="#1a7f37", linewidth=1.4))
    bar = figure.add_axes(((left + width + 0.2) / size[0], bottom / size[1], 0.16 / size[0], height / size[1]))
    figure.colorbar(image, cax=bar, label="% of the photos found")
    bar.tick_params(labelsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write picture {path}: {error}") from None


def sweep(path: Path, rows: Sequence[tuple[str, Sequence[float]]], metric: str, title: str) -> None:
    """One line a configuration: a small dot for each seed, a large one for their mean.

    Args:
        path: of the picture.
        rows: label and one value (0 to 1) a seed; the first is what the others are compared with.
        metric: name of the values.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    height = 0.3 * len(rows) + 1.3
    longest = max(len(label) for label, _ in rows)
    left, width = 0.085 * longest + 0.3, 5.5
    size = (left + width + 0.3, height)
    figure = Figure(figsize=size, dpi=130)
    axes = figure.add_axes((left / size[0], 0.6 / height, width / size[0], (height - 1.1) / height))
    first = 100 * float(np.mean(rows[0][1]))
    axes.axvline(first, color="#c9ccd1", linewidth=1, zorder=0)
    for number, (_, values) in enumerate(rows):
        percent = 100 * np.asarray(values)
        axes.plot([percent.min(), percent.max()], [number, number], color="#54aeff", linewidth=2, zorder=1)
        axes.plot(percent, [number] * len(percent), "o", color="#54aeff", markersize=4, zorder=2)
        axes.plot(percent.mean(), number, "o", color="#0a3069" if number else "#1a7f37", markersize=7, zorder=3)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{metric}, percent", fontsize=10)
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write picture {path}: {error}") from None


def curves(path: Path, x: Sequence[float], lines: Mapping[str, Sequence[float]], axis: str, title: str) -> None:
    """Lines over shares.

    Args:
        path: of the picture.
        x: 0 to 1, rising.
        lines: values, 0 to 1, as many as ``x``, by name.
        axis: what ``x`` is.
        title: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(100 * np.asarray(x), 100 * np.asarray(values), marker="o", markersize=4, label=name)
    axes.set_xlabel(axis, fontsize=10)
    axes.set_ylabel("percent of the sketches", fontsize=10)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlim(0, 102)
    axes.set_ylim(bottom=0)
    axes.grid(color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write picture {path}: {error}") from None
