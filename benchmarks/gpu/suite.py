"""Stages in turn, each in a worker, with what they found, until the time is up."""

import json
import os
import time
from pathlib import Path
from typing import Any

from . import table
from .plan import Stage
from .process import run_worker

MARGIN = 4.0  # seconds that ending a stage and writing the report may take
FILES = ("gpu_suite.json", "gpu_suite.md", "logs.txt", "junit.xml", "ncu.txt")
SHARE = 0.4  # of its estimate that a stage must have left to be worth a start


class Suite:
    def __init__(
        self, seconds: float, out: Path, scratch: Path, told: dict[str, Any], baseline: dict[str, Any] | None = None
    ) -> None:
        self.began, self.seconds, self.out, self.scratch = time.monotonic(), seconds, out, scratch
        self.told, self.baseline = told, baseline or {}
        self.leave_out: set[str] = set(told["leave_out"])
        self.report: dict[str, Any] = {"machine": {}, "ceilings": {}, "stages": {}, "skipped": [], "rows": []}
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        self._written = 0.0

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    @property
    def failed(self) -> bool:
        return any("error" in stage or stage["wrong"] for stage in self.report["stages"].values())

    def skip(self, name: str, why: str) -> None:
        self.report["skipped"].append({"stage": name, "why": why})
        print(f"-- {name}: skipped, {why}", flush=True)

    def ended_well(self, name: str) -> bool:
        return name in self.report["stages"] and "error" not in self.report["stages"][name]

    def run(self, stage: Stage, implied: frozenset[str] = frozenset()) -> None:
        """`implied`: what it needs but is there without a run: a baseline's ceilings."""
        lacking = [need for need in stage.needs if need not in implied and not self.ended_well(need)]
        if lacking:
            return self.skip(stage.name, f"needs {' and '.join(lacking)}")
        room = self.left() - MARGIN
        if room < SHARE * stage.estimate:
            return self.skip(stage.name, f"{room:.0f} s left, takes about {stage.estimate:.0f}")
        print(f"-- {stage.name} ({time.monotonic() - self.began:.0f} s)", flush=True)
        began = time.monotonic()
        entry: dict[str, Any] = {"seconds": 0.0, "found": {}, "wrong": []}
        self.report["stages"][stage.name] = entry
        left_out = set(self.leave_out)

        def take(line: dict[str, Any]) -> None:
            if "row" in line:
                row = {"stage": stage.name, **line["row"]}
                table.against_baseline(row, self.baseline)
                self.report["rows"].append(row)
                ratio = f"; {row['to_baseline']:.2f}x as fast as before" if "to_baseline" in row else ""
                print(f"   {row['op']} {row['sizes']}: {row['ms']:.3f} ms, {row['of_floor']:.0%} of the floor; "
                      f"{table.peers_of(row)}{ratio}", flush=True)  # fmt: skip
            elif "wrong" in line:
                entry["wrong"].append(line["wrong"])
                print(f"   WRONG: {line['wrong']}", flush=True)
            elif "machine" in line:
                self.report["machine"] |= line["machine"]
            else:
                entry["found"] |= line["found"]
            entry["seconds"] = round(time.monotonic() - began, 1)
            self.write(hurry=False)

        told = {**self.told, "function": stage.function, "scratch": str(self.scratch / stage.name),
                "leave_out": sorted(left_out), "ceiling": self.report["ceilings"]}  # fmt: skip
        with (self.out / "logs.txt").open("ab") as log:
            log.write(f"\n==== {stage.name} ====\n".encode())
            log.flush()
            try:
                ended = run_worker(told, min(stage.limit, room), log, take)
            except BaseException as e:  # whoever ends the suite gets what there is
                entry["error"] = f"the suite was ended: {type(e).__name__}"
                self.write()
                raise
            if ended:
                log.write(f"==== {stage.name}: {ended} ====\n".encode())
        entry |= ended | {"seconds": round(time.monotonic() - began, 1)}
        if ended:
            print(f"   {stage.name}: {ended.get('error') or ended.get('skipped')}", flush=True)
        self.leave_out = left_out | set(entry["found"].get("leave_out", []))
        if stage.name == "ceilings":
            self.report["ceilings"] |= entry["found"]
        self.write()

    def write(self, hurry: bool = True) -> None:
        """What there is so far: whoever has the GPU for some minutes may be cut off. Within a stage, once a second."""
        if not hurry and time.monotonic() - self._written < 1:
            return
        self.report |= {"failed": self.failed, "seconds": round(time.monotonic() - self.began)}
        whole = {"gpu_suite.json": json.dumps(self.report, indent=1, default=str) + "\n",
                 "gpu_suite.md": table.markdown(self.report)}  # fmt: skip
        for name, text in whole.items():
            fresh = self.out / f".{name}"  # never half a file, whenever this process is killed
            fresh.write_text(text)
            os.replace(fresh, self.out / name)
        self._written = time.monotonic()
