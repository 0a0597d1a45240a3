"""A stage in a process of its own: python -m gpu.worker JOB, a JSON file that the driver wrote.

What the stage finds goes to a file of JSON lines, each written at once: a worker that is killed, or whose CUDA
context is lost, leaves what it had.
"""

import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any


class Skipped(Exception):
    """The stage cannot run here, which is no failure."""


class Job:
    """What a stage is told, and where it puts what it finds."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.scratch, self.out = Path(told["scratch"]), Path(told["out"])
        self.site = Path(told["site"])  # holds the package
        self.shared = Path(told["shared"])  # what stages leave for those after them
        self.arch: str = told["arch"]
        self.module: str | None = told["module"]  # where a built package is, if not to be built
        self.leave_out: set[str] = set(told["leave_out"])  # ways to multiply that are not run
        self.ceiling: dict[str, float] = told["ceiling"]
        self._deadline = time.monotonic() + told["seconds"]
        self._results = Path(told["results"])

    def left(self) -> float:
        """Seconds until the worker is killed."""
        return self._deadline - time.monotonic()

    def _write(self, **line: Any) -> None:
        with self._results.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def row(self, row: dict[str, Any]) -> None:
        """A measured case."""
        self._write(row=row)

    def found(self, **facts: Any) -> None:
        """Anything else; later facts of a name replace earlier ones."""
        self._write(found=facts)

    def machine(self, **facts: Any) -> None:
        self._write(machine=facts)

    def wrong(self, what: str) -> None:
        """A result is not what it has to be: the suite fails, the stage goes on."""
        print(f"   WRONG: {what}", flush=True)
        self._write(wrong=what)

    def skip(self, why: str) -> None:
        raise Skipped(why)

    def ended(self, **how: str) -> None:
        self._write(ended=how)


def main() -> int:
    told = json.loads(Path(sys.argv[1]).read_text())
    job = Job(told)
    module, function = told["function"].rsplit(".", 1)
    try:
        getattr(importlib.import_module(module), function)(job)
    except Skipped as e:
        print(f"   not run: {e}")
        job.ended(skipped=str(e))
        return 0
    except Exception as e:
        traceback.print_exc()
        job.ended(error=f"{type(e).__name__}: {e}"[:2000])
        return 1
    job.ended()
    return 0


if __name__ == "__main__":
    sys.exit(main())
