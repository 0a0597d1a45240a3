"""Do the tests see what they should? Each mutation in mutants.yaml is made in a copy of the code, and named tests must fail.

    python tools/mutants.py                                # all of them, after the tests passed on the unchanged copy
    python tools/mutants.py --sample 6 --seed 20250101     # a few, as CI does; the seed says which
    python tools/mutants.py --only semi-hard-ties          # by name, or the start of names; a --json report keeps the rest
    python tools/mutants.py --jobs 2 --json benchmarks/results/mutants.json

A mutation says which text of a file becomes which other text, and the cheapest tests that notice. It is killed when
one of them fails, crashes or hangs, and survives when all pass. It is broken when the text is not in the file, or more
than once, when what it makes is no Python, or when pytest does not find the tests: then the list must be mended.
The working tree is never changed. Exit code 0: every mutation of a sample was killed, or 95% of all; none was broken.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".yaml")
COPIED = ("python", "export", "tests", "tools", "benchmarks", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
GOAL = 0.95
KEYS = {"name", "file", "before", "after", "tests"}
FAILED, PASSED = 1, 0  # exit codes of pytest; others: nothing was tested


@dataclass
class Mutation:
    """One change, and the tests that must notice it."""

    name: str
    file: str
    before: str
    after: str
    tests: list[str]

    def apply(self, text: str) -> str:
        """The text of the file with the change.

        Raises:
            ValueError: the change cannot be made.
        """
        count = text.count(self.before)
        if count != 1:
            raise ValueError(f"'before' is {count} times in {self.file}")
        if self.before == self.after:
            raise ValueError("'after' is 'before'")
        changed = text.replace(self.before, self.after)
        if self.file.endswith(".py"):
            try:
                compile(changed, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"what it makes is no Python: {error}") from None
        return changed


def read(path: Path = LIST) -> list[Mutation]:
    """The list.

    Raises:
        ValueError: an entry that is not complete, or two of one name.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = []
    for entry in entries:
        if set(entry) != KEYS or not entry["tests"]:
            raise ValueError(f"{path.name}: an entry needs {', '.join(sorted(KEYS))}: {entry.get('name', entry)}")
        found.append(Mutation(**entry))
    names = [mutation.name for mutation in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: more than one {', '.join(twice)}")
    return found


class Copy:
    """A copy of the code in which mutations are made, one at a time."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder, self.root = folder, root
        self.turn = 0
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules")
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=skip, symlinks=True)
            elif source.exists():
                shutil.copy2(source, folder / name)
        # An editable install finds splip.export by itself; here it must be the copy's.
        package = folder / "python" / "splip"
        if package.is_dir() and not (package / "export").exists():
            (package / "export").symlink_to(folder / "export", target_is_directory=True)
        # Installed from a wheel, the compiled core does not lie in the checkout.
        if package.is_dir() and not list(package.glob("_C*.so")):
            core = importlib.util.find_spec("splip._C")
            if core is not None and core.origin is not None:
                shutil.copy2(core.origin, package)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        self.turn += 1  # compiled files are told apart by a whole second and the size: neither need change
        later = time.time() + 10 * self.turn
        os.utime(path, (later, later))

    def test(self, tests: list[str], timeout: float) -> int | None:
        """Run tests; pytest's exit code, or None if they hang."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["--basetemp", str(self.folder / "tmp"), *tests]
        if all("::" in test for test in tests):
            command += ["-m", ""]  # by its name also one that takes long
        env = {**os.environ, "PYTHONPATH": str(self.folder / "python"), "OMP_WAIT_POLICY": "passive"}
        env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half of the seconds that most mutations take
        env.setdefault("OMP_NUM_THREADS", "1")
        log = self.folder / "log.txt"
        with open(log, "w", encoding="utf-8") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
            finally:
                # Also what the tests started: a mutant may leave a server behind.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()

    def said(self) -> str:
        """The end of what pytest printed last."""
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-1500:]

    def try_out(self, mutation: Mutation, timeout: float) -> tuple[str, str]:
        """killed, survived or broken, and why."""
        path = self.folder / mutation.file
        try:
            whole = path.read_text(encoding="utf-8")
            changed = mutation.apply(whole)
        except (OSError, ValueError) as error:
            return "broken", str(error)
        try:
            self._write(path, changed)
            code = self.test(mutation.tests, timeout)
        finally:
            self._write(path, whole)
        if code is None:
            return "killed", "hangs"
        if code == FAILED or code < 0:
            return "killed", "crashes" if code < 0 else ""
        return ("survived", "") if code == PASSED else ("broken", f"pytest ended with {code}: {self.said()}")


def choose(mutations: list[Mutation], count: int, seed: str) -> list[Mutation]:
    """Some of them, by the seed alone."""
    return random.Random(seed).sample(mutations, min(count, len(mutations)))


def run(mutations: list[Mutation], jobs: int, timeout: float, seconds: float | None, baseline: bool) -> dict[str, Any]:
    """Try all of them; the report."""
    began, rows, lock = time.monotonic(), {}, threading.Lock()
    waiting: queue.SimpleQueue[Mutation] = queue.SimpleQueue()
    for mutation in mutations:
        waiting.put(mutation)

    def work(copy: Copy) -> None:
        while seconds is None or time.monotonic() - began < seconds:
            try:
                mutation = waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            result, why = copy.try_out(mutation, timeout)
            with lock:
                rows[mutation.name] = {"result": result, "why": why, "seconds": round(time.monotonic() - start, 1)}
                note = f": {why.strip().splitlines()[-1]}" if why else ""
                print(f"{result:8} {mutation.name} ({time.monotonic() - start:.0f} s){note}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copies = [Copy(Path(place) / str(number)) for number in range(jobs)]
        if baseline:
            tests = sorted({test for mutation in mutations for test in mutation.tests})
            # A test inside a file that is named as a whole would run twice.
            tests = [test for test in tests if "::" not in test or test.split("::")[0] not in tests]
            print(f"{len(tests)} tests and files on the unchanged copy", flush=True)
            parts = [tests[number::jobs] for number in range(jobs)]
            with ThreadPoolExecutor(jobs) as pool:
                codes = list(pool.map(lambda copy, part: copy.test(part, 3600) if part else PASSED, copies, parts))
            for copy, code in zip(copies, codes, strict=True):
                if code != PASSED:
                    raise SystemExit(f"the tests fail without any mutation:\n{copy.said()}")
        threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return report_of(rows)


def report_of(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts and the score of what was tried."""
    results = [row["result"] for row in rows.values()]
    tried = len(results) - results.count("broken")
    return {
        "mutations": len(results),
        "killed": results.count("killed"),
        "survived": results.count("survived"),
        "broken": results.count("broken"),
        "score": round(results.count("killed") / max(1, tried), 4),
        "seconds": round(sum(row["seconds"] for row in rows.values())),  # of all copies together
        "rows": {name: rows[name] for name in sorted(rows)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="how many to try; none: all")
    parser.add_argument("--seed", default=datetime.date.today().isoformat(), help="which ones; default: the date")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="by name, or the start of names")
    parser.add_argument("--jobs", type=int, default=1, help="copies at the same time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one; then it hangs")
    parser.add_argument("--seconds", type=float, help="begin no further one after this time")
    parser.add_argument("--no-baseline", action="store_true", help="the tests are known to pass as the code is")
    parser.add_argument("--json", type=Path, help="file for the report")
    args = parser.parse_args()
    try:
        mutations = read()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        print(f"mutants: error: {error}", file=sys.stderr)
        return 2
    if args.only:
        mutations = [m for m in mutations if m.name.startswith(tuple(args.only))]
    part = args.sample is not None or bool(args.only)
    if args.sample is not None:
        mutations = choose(mutations, args.sample, args.seed)
        print(f"{len(mutations)} of the list, seed {args.seed}")
    if not mutations or args.jobs < 1:
        print("mutants: error: nothing to try", file=sys.stderr)
        return 2
    report = run(mutations, args.jobs, args.timeout, args.seconds, not part and not args.no_baseline)
    print("{killed} killed, {survived} survived, {broken} broken of {mutations}: {score:.1%}".format(**report))
    if args.json is not None:
        whole = report
        if args.only and args.json.is_file():  # what was tried again takes its place among the others
            names = {mutation.name for mutation in read()}
            before = json.loads(args.json.read_text(encoding="utf-8"))["rows"]
            whole = report_of({n: row for n, row in {**before, **report["rows"]}.items() if n in names})
        args.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    good = report["survived"] == 0 if part else report["score"] >= GOAL
    return 0 if good and not report["broken"] and report["mutations"] else 1


if __name__ == "__main__":
    sys.exit(main())
