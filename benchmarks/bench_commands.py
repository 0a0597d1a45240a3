"""What commands cost before they do anything: processor and wall seconds of short ones, from the shell.

    splip export splip-tiny-3 --text --out exported
    splip index add photos --gallery gallery --model exported
    python benchmarks/bench_commands.py --gallery gallery --sketch sketch.png

Files are in the page cache. Each command is a process of its own; medians of the repeats, which take turns.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness


def once(command: list[str]) -> tuple[float, float]:
    """Seconds of the processor, and on the wall."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, required=True, help="made with an export that reads texts")
    parser.add_argument("--sketch", type=Path, required=True, help="a drawing")
    parser.add_argument("--repeats", type=int, default=7, help="(default: 7)")
    args = parser.parse_args()
    splip, gallery = [sys.executable, "-m", "splip"], ["--gallery", str(args.gallery)]
    commands = {
        "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "splip --help": [*splip, "--help"],
        "splip info": [*splip, "info"],
        "splip index list": [*splip, "index", "list", *gallery],
        "splip search --text": [*splip, "search", *gallery, "--text", "a bell"],
        "splip search --sketch": [*splip, "search", *gallery, "--sketch", str(args.sketch)],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(args.repeats + 1):
        for name, command in commands.items():
            took = once(command)
            if number:  # the first reads files
                found[name].append(took)
    rows: list[dict[str, Any]] = [
        {
            "command": name,
            "cpu_s": round(statistics.median(cpu for cpu, _ in runs), 3),
            "wall_s": round(statistics.median(wall for _, wall in runs), 3),
        }
        for name, runs in found.items()
    ]
    for row in rows:
        print(f"{row['command']:28} {row['cpu_s']:6.2f} CPU s {row['wall_s']:6.2f} s")
    path = harness.RESULTS / "commands-cpu.json"
    path.write_text(json.dumps({"machine": harness.machine("cpu"), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(os.path.relpath(path))


if __name__ == "__main__":
    main()
