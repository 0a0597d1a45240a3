"""Everything that needs a GPU, in one command: build, tests, sanitizer, benchmarks, profiles.

    python benchmarks/gpu_suite.py --out results-here
    python benchmarks/gpu_suite.py --out results-here --only headline sweep --baseline gpu_suite.json
    python benchmarks/gpu_suite.py --out results-here --module site --only ncu   # a folder that holds a built splip
    python benchmarks/gpu_suite.py --dry-run                                     # the plan; needs no GPU
    python benchmarks/gpu_suite.py --table results-here/gpu_suite.json           # the table of an earlier run

For a bare machine with nvcc, cmake, ninja, pybind11 and torch; no network, and nothing of splip installed. The
extension is built for the GPU at hand in a temporary folder, the tree stays as it is. Every stage is a process of its
own with a time limit: one that hangs is killed with all that it started, one that loses its CUDA context loses nothing
else, and what it printed and measured until then is kept. Every time stands beside its floor: the bytes that must move
at this card's measured bandwidth (reading, for a search; copying, for the other ops), or the products at its measured
rate, whichever takes longer. Answers are compared with float64's. Stages that do not fit in --seconds are skipped and
named.

Writes gpu_suite.json and gpu_suite.md (both while it runs), logs.txt, and from their stages junit.xml and ncu.txt.
Exit code 0: all passed; 1: a stage failed or a result is wrong; 2: wrong usage; 3: no GPU.
"""

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu import build, machine, plan, table
from gpu.process import environment
from gpu.suite import MARGIN, Suite

BUILD_TOOLS, BUILD_MODULES, RUN_MODULES = ("nvcc", "cmake", "ninja"), ("pybind11",), ("torch", "numpy")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.name for stage in plan.STAGES]
    parser.add_argument("--out", type=Path, default=Path("gpu-suite"), help="folder for the results (%(default)s)")
    parser.add_argument("--seconds", type=float, default=plan.SECONDS, help="time for everything (%(default)s)")
    parser.add_argument("--arch", help="compute capability to build for (default: the GPU's; 90a without one)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE",
                        help=f"these stages and what they need, of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--baseline", type=Path, metavar="JSON", help="an earlier gpu_suite.json to compare with")
    parser.add_argument("--module", type=Path, metavar="PATH", help="a folder with a built splip package: no build")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="WAY",
                        help="ways to multiply that are not run, e.g. wgmma")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check everything that needs no GPU, print the plan")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of this report and end")
    args = parser.parse_args(words)
    for option in ("baseline", "table"):
        path = getattr(args, option)
        if path is not None and not path.is_file():
            parser.error(f"--{option} {path}: no such file")
    if args.module is not None and not list((args.module / "splip").glob("_C*")):
        parser.error(f"--module {args.module}: holds no built splip package")
    if args.seconds < 30:
        parser.error(f"--seconds {args.seconds:g}: too few for anything")
    return args


def read(path: Path | None) -> dict[str, Any]:
    return {} if path is None else json.loads(path.read_text())


def known(args: argparse.Namespace, baseline: dict[str, Any], gpu: dict[str, Any] | None) -> frozenset[str]:
    """Stages that a part of the suite need not repeat: the ceilings, if an earlier run had them of such a card."""
    same = gpu is not None and baseline.get("machine", {}).get("gpu") == gpu["gpu"]
    asked = args.only is not None and "ceilings" not in args.only
    return frozenset({"ceilings"}) if asked and same and baseline.get("ceilings") else frozenset()


def installed() -> Path | None:
    """Where a built splip is that this Python imports."""
    try:
        found = importlib.util.find_spec("splip._C")
    except ModuleNotFoundError:
        return None
    return Path(found.origin).parents[1] if found and found.origin else None


def dry_run(args: argparse.Namespace, stages: list[plan.Stage], arch: str) -> int:
    """The commands, the order and the times; and whether every stage can be imported and is there."""
    print("build:")
    if args.module:
        print(f"  none: {args.module} is used")
    else:
        for command in build.commands(Path("SITE"), Path("BUILD"), arch):
            print("  $", *command)
    print("  $", *build.reading_command(Path(build.READING), arch))
    lack = machine.missing(BUILD_TOOLS, BUILD_MODULES + RUN_MODULES)
    print(f"  missing here: {', '.join(lack) or 'nothing'}")
    print(f"{'stage':10} {'from s':>7} {'about s':>8} {'limit s':>8}  needs")
    began = 0.0
    for stage in stages:
        print(f"{stage.name:10} {began:7.0f} {stage.estimate:8.0f} {stage.limit:8.0f}  {', '.join(stage.needs) or '-'}")
        began += stage.estimate
    print(f"{len(stages)} stages, about {began:.0f} s of {args.seconds:.0f}")
    functions = [stage.function for stage in stages]
    site = args.module if args.module else installed() or machine.ROOT / "python"
    code = "import sys; from gpu import check; sys.exit(check.check(sys.argv[1:]))"
    failed = subprocess.run([sys.executable, "-c", code, *functions], env=environment(site)).returncode
    return 1 if failed or began + MARGIN > args.seconds else 0


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    if args.table:
        print(table.markdown(read(args.table)))
        return 0
    gpu = machine.gpu()
    arch = args.arch or machine.arch_of(gpu)
    baseline = read(args.baseline)
    have = known(args, baseline, gpu)
    stages = plan.choose(args.only, set(have))
    if args.dry_run:
        return dry_run(args, stages, arch)
    if gpu is not None and (lack := machine.missing(() if args.module else BUILD_TOOLS, RUN_MODULES)):
        print(f"gpu_suite: missing on this machine: {', '.join(lack)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        site = args.module.resolve() if args.module else Path(folder) / "site"
        site.mkdir(exist_ok=True)
        told = {"site": str(site), "shared": folder, "out": str(args.out.resolve()), "arch": arch, "leave_out": args.leave_out,
                "module": str(args.module) if args.module else None}  # fmt: skip
        suite = Suite(args.seconds, args.out, Path(folder), told, baseline)
        suite.report["machine"] = machine.describe(gpu)
        if have:
            suite.report["ceilings"] = baseline["ceilings"]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception: the worker is killed, too
        for stage in stages:
            if gpu is None:
                suite.skip(stage.name, "no GPU")
            else:
                suite.run(stage, have)
        suite.write()
    print(table.markdown(suite.report))
    if suite.failed:
        return 1
    if gpu is None:
        print("gpu_suite: no GPU")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
