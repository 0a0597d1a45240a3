"""The tests marked cuda; those of the package's other parts need more than torch."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET

from .machine import ROOT, missing
from .worker import Job

TESTS = ("test_cuda.py", "test_cosine_topk.py", "test_prompt_layernorm.py", "test_patchify.py")
WORKERS = 6  # on one GPU
MOST_FAILURES = 30
REPORT = 13  # seconds; its own workers have 10 to end when it is interrupted


def command(junit: str, leave_out: set[str]) -> list[str]:
    """Names as they end: what is cut off has said how far it came."""
    found = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "cuda"]
    found += ["--tb=short", f"--maxfail={MOST_FAILURES}", f"--junitxml={junit}", "--rootdir", str(ROOT)]
    if importlib.util.find_spec("xdist") is not None:
        found += ["-n", str(WORKERS)]
    if leave_out:
        found += ["-k", " and ".join(f"not {way}" for way in sorted(leave_out))]
    return found + [str(ROOT / "tests/ops" / name) for name in TESTS]


def cuda_tests(job: Job) -> None:
    if lack := missing((), ("pytest", "PIL")):
        job.skip(f"no module {', '.join(lack)}")
    junit = job.out / "junit.xml"
    process = subprocess.Popen(command(str(junit), job.leave_out), start_new_session=False)
    try:
        code = process.wait(max(5, job.left() - REPORT - 2))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it still writes the report of what has run
        try:
            process.wait(REPORT)
        except subprocess.TimeoutExpired:
            process.kill()
        job.wrong("tests: the time was up")
        code = None
    if junit.is_file():
        tidy(junit)
        suites = ET.parse(junit).getroot().iter("testsuite")
        found = {key: 0 for key in ("tests", "failures", "errors", "skipped")}
        for suite in suites:
            for key in found:
                found[key] += int(suite.get(key, 0))
        job.found(**found, summary=", ".join(f"{n} {key}" for key, n in found.items()))
        if found["skipped"] > found["tests"] // 2:
            job.wrong(f"tests: {found['skipped']} of {found['tests']} were skipped: no GPU, or a build without CUDA?")
    if code:
        job.wrong(f"tests: pytest's exit code is {code}")


def tidy(junit: "os.PathLike[str]") -> None:
    """The machine's name is nobody's business."""
    with open(junit) as file:
        text = file.read()
    with open(junit, "w") as file:
        file.write(re.sub(r' hostname="[^"]*"', "", text))
