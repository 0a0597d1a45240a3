"""One worker from start to end: its log as it comes, its findings, its time limit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

MOST_LOG = 1 << 20  # bytes of a stage: the file of all logs has to stay below 16 MiB
POLL = 0.2


def environment(site: Path, **more: str) -> dict[str, str]:
    """For a Python that imports the package from `site`, and the stages."""
    here = Path(__file__).resolve().parents[1]
    paths = [str(site), str(here), str(here.parent / "tools")]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1",
            "OMP_WAIT_POLICY": "passive", **more}  # fmt: skip


class Tail:
    """What was added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")

    def read(self) -> bytes:
        return self._file.read()

    def close(self) -> None:
        self._file.close()


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """A worker and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)


def run_worker(
    told: dict[str, Any], seconds: float, log: BinaryIO, take: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a stage for `seconds` at most. `take` gets each line of its findings while it runs.

    Returns how it ended: empty if well, else `error` or `skipped`.
    """
    folder = Path(told["scratch"])
    folder.mkdir(parents=True)
    job, output = folder / "job.json", folder / "output"
    job.write_text(json.dumps({**told, "seconds": seconds - 3, "results": str(folder / "results")}))
    written, findings = Tail(output), Tail(folder / "results")
    ended: dict[str, Any] | None = None
    copied, part = 0, b""

    def look() -> None:
        nonlocal ended, copied, part
        new = written.read()
        if copied <= MOST_LOG:
            log.write(new[: MOST_LOG - copied] + (b"\n... cut\n" if copied + len(new) > MOST_LOG else b""))
            log.flush()
        copied += len(new)
        *lines, part = (part + findings.read()).split(b"\n")
        for line in lines:
            found = json.loads(line)
            if "ended" in found:
                ended = found["ended"]
            else:
                take(found)

    began = time.monotonic()
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu.worker", str(job)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, cwd=folder,
            env=environment(Path(told["site"])), start_new_session=True,
        )  # fmt: skip
    late = False
    try:
        while process.poll() is None and not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL)
            look()
            late = time.monotonic() - began > seconds
    finally:
        code = process.poll()
        kill_group(process)  # also what a worker that ended has left behind
        look()
        written.close()
        findings.close()
    if late:
        return {"error": f"killed after {seconds:.0f} s"}
    if code is not None and code < 0:
        return {"error": f"ended by {signal.Signals(-code).name}"}
    if ended is None:
        return {"error": f"exit code {code} without a word"}
    return ended
