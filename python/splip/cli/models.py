"""``splip models``: what has a short name, and how long a picture takes on this machine."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from splip import disk
from splip.cli.config import ModelsConfig
from splip.errors import UserError, shown
from splip.models.presets import PRESETS, Preset
from splip.report import Report

PICTURES, SECONDS, LEAST = 8, 2.0, 3  # of a batch; how long and how often it is repeated


def models(config: ModelsConfig) -> Report:
    """``splip models``; 1 if something could not be measured."""
    failed = False
    for name in _asked(config):
        try:
            _keep(name, measure(name, config.threads))
        except UserError as error:
            failed = True
            print(f"splip: {name}: not measured: {error}", file=sys.stderr)
    times = _times()
    if config.json:
        rows = [{"name": name, **dataclasses.asdict(p), "here": times.get(name)} for name, p in PRESETS.items()]
        return Report(int(failed), models=rows)
    head = ("name", "pixels", "parameters", "vector", "words", "ms here", "licence of the weights")
    cells = [head, *(_row(name, preset, times.get(name)) for name, preset in PRESETS.items())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row, preset in zip(cells, (None, *PRESETS.values()), strict=True):
        parts = [
            cell.ljust(w) if i in (0, 6) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(parts).rstrip())
        if preset is not None:
            print(f"    {preset.model}: {preset.good_for}")
    print("\nparameters: of the image tower, and of both; ms: a picture, in batches of 8, with random weights, which")
    print(
        "take as long as trained ones; `splip models --measure NAME` fills the column. See the card of each model for its"
    )
    print("licence; docs/how-to/models.md says where these are from, and what else --model takes.")
    return Report(int(failed))


def measure(name: str, threads: int | None = None) -> dict[str, Any]:
    """Milliseconds that the image tower of a preset takes for a picture here, with random weights: nothing is downloaded.

    Raises:
        UserError: it cannot be built here.
    """
    import torch

    from splip.models import names
    from splip.models.clip import PromptedCLIP

    config = names.resolve(PRESETS[name].model).backbone
    assert config is not None
    before = torch.get_num_threads()
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    try:
        clip = PromptedCLIP(dataclasses.replace(config, pretrained="random")).eval()
        images = torch.zeros(PICTURES, 3, clip.image_size, clip.image_size, dtype=torch.uint8)
        took: list[float] = []
        with torch.inference_mode():
            clip.encode_visual(clip.embed_patches(images))
            until = time.perf_counter() + SECONDS
            while len(took) < LEAST or time.perf_counter() < until:
                began = time.perf_counter()
                clip.encode_visual(clip.embed_patches(images))
                took.append(time.perf_counter() - began)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return {
        "ms": round(1000 * statistics.median(took) / PICTURES, 2),
        "threads": used,
        "torch": torch.__version__,
        "device": "cpu",
        "weights": "random",
        "when": time.strftime("%Y-%m-%d"),
    }


def _asked(config: ModelsConfig) -> list[str]:
    if config.measure is None:
        return []
    for name in config.measure:
        if name not in PRESETS:
            raise UserError(f"--measure {name}: no such name; {', '.join(PRESETS)}")
    return list(config.measure or PRESETS)


def _row(name: str, preset: Preset, found: dict[str, Any] | None) -> tuple[str, ...]:
    millions = f"{preset.image_parameters / 1e6:.1f} of {preset.parameters / 1e6:.1f} M"
    words = str(preset.words) if preset.words else "no"
    licence = f"{preset.licence} ({preset.source})"
    return (
        name,
        str(preset.pixels),
        millions,
        str(preset.dimensions),
        words,
        f"{found['ms']:.1f}" if found else "-",
        licence,
    )


# ---- what was measured, kept for later lists ----


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "splip" / "models.json"


def _machine() -> str:
    """A home may be on many machines: each has its own figures."""
    kind = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        kind = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), kind)
    except OSError:
        pass
    return f"{platform.node()}: {kind}, {os.cpu_count()} cores"


def _all() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _times() -> dict[str, dict[str, Any]]:
    """What was measured on this machine; nothing of what is damaged."""
    own = _all().get(_machine())
    rows = own.items() if isinstance(own, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict) and isinstance(row.get("ms"), (int, float))}


def _keep(name: str, found: dict[str, Any]) -> None:
    file, known = _file(), _all()
    own = known.get(_machine())
    known[_machine()] = {**(own if isinstance(own, dict) else {}), name: found}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(file, json.dumps(known, indent=1) + "\n")
    except OSError as error:
        print(f"splip: {shown(file)}: not kept: {error.strerror}", file=sys.stderr)
