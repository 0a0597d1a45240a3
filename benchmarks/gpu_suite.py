"""Everything that needs a GPU, in one command: build, tests, sanitizer, benchmarks, TensorRT.

    python benchmarks/gpu_suite.py --out results-here
    python benchmarks/gpu_suite.py --out results-here --dry-run      # all that needs no GPU

For a bare machine with nvcc, cmake, ninja, pybind11 and torch; no network, and nothing of splip installed. The
extension is built for the GPU at hand in a temporary folder, the tree stays as it is. Every time stands beside its
floor: the bytes that must move at this card's measured copy bandwidth, or the products at its measured rate (bf16 or
int8), whichever takes longer, and beside the times of the kernels it is made of. A sweep compares the ways to multiply
(stream, tiles of mma.sync, wgmma) at every number of queries: their results, too. Stages that do not fit in `--seconds`
are skipped and named. Writes gpu_suite.json, after every stage, and gpu_suite.md. Exit code 0: all passed; 1: a test,
the sanitizer or a result failed; 3: no GPU.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["test_cuda.py", "test_cosine_topk.py", "test_prompt_layernorm.py", "test_patchify.py"]
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
CHUNK = 1 << 18  # gallery rows of a step of the chunked peer

# Q, N, D, K, dtype, gallery: what is measured, the most telling first. int8: a float16 gallery in 8 bits.
TOPK = [
    (1, 10_000_000, 512, 10, "float16", "random"),
    (8, 10_000_000, 512, 10, "float16", "random"),
    (32, 10_000_000, 512, 10, "float16", "random"),
    (256, 10_000_000, 512, 10, "float16", "random"),
    (1, 10_000_000, 512, 10, "int8", "random"),
    (32, 10_000_000, 512, 10, "int8", "random"),
    (256, 10_000_000, 512, 10, "int8", "random"),
    (1024, 1_000_000, 512, 10, "int8", "random"),
    (1024, 1_000_000, 512, 10, "bfloat16", "random"),
    (4096, 1_000_000, 512, 10, "bfloat16", "random"),
    (1, 1_000_000, 512, 10, "bfloat16", "random"),
    (32, 1_000_000, 512, 10, "bfloat16", "random"),
    (64, 1_000_000, 512, 10, "bfloat16", "random"),
    (256, 1_000_000, 512, 10, "bfloat16", "random"),
    (1024, 1_000_000, 512, 100, "bfloat16", "random"),
    (256, 1_000_000, 512, 1024, "bfloat16", "random"),
    (1024, 1_000_000, 768, 10, "float16", "random"),
    (32, 1_000_000, 512, 10, "float32", "random"),
    (1024, 1_000_000, 512, 10, "float32", "random"),
    (1024, 1_000_000, 512, 10, "bfloat16", "clustered"),
    (1024, 1_000_000, 512, 10, "bfloat16", "ascending"),
    (1024, 1_000_000, 512, 10, "bfloat16", "one in ten allowed"),
    (1024, 1_000_000, 512, 10, "int8", "clustered"),
    (1024, 1_000_000, 512, 100, "int8", "random"),
    (32, 1_000_000, 512, 1024, "int8", "random"),
]
TELLING = 10  # of these, before the sweep and the sanitizer
TOPK_COMPILED = (TOPK[8], TOPK[11])  # compiling takes seconds: a few cases of each op
SWEEP = (1, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)  # queries, at N = 1,000,000, D = 512, K = 10
LEAVE_OUT: set[str] = set()  # ways to multiply that are not run: asked for, or wgmma if its trial fails
SWEEP_MOST = {"stream": 256, "tiles64": 1024}  # ways to multiply that are not meant for more
LAYERNORM = [(256, 197, 6, 768, "bfloat16"), (256, 50, 6, 768, "bfloat16"), (256, 197, 6, 768, "float32")]
PATCHIFY = [
    (256, 224, 32, "bfloat16"),
    (256, 224, 16, "bfloat16"),
    (256, 224, 14, "bfloat16"),
    (256, 224, 32, "float32"),
]


class Suite:
    """Stages in turn, each with what it found, until the time is up."""

    def __init__(self, seconds: float, out: Path | None = None) -> None:
        self.began, self.seconds, self.out = time.monotonic(), seconds, out
        self.report: dict[str, Any] = {"stages": {}, "skipped": [], "rows": []}
        self.failed = False

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def skip(self, name: str, why: str) -> None:
        self.report["skipped"].append({"stage": name, "why": why})
        print(f"-- {name}: skipped, {why}", flush=True)

    def stage(self, name: str, needs: float, work: Callable[[], Any]) -> Any:
        """Run `work` if `needs` seconds are left. An error fails the suite but not the stages after it."""
        if self.left() < needs:
            self.skip(name, f"{self.left():.0f} s left, needs {needs:.0f}")
            return None
        print(f"-- {name} ({time.monotonic() - self.began:.0f} s)", flush=True)
        began = time.monotonic()
        try:
            found = work()
        except Exception as e:
            traceback.print_exc()
            found, self.failed = {"error": f"{type(e).__name__}: {e}"}, True
        self.report["stages"][name] = {"seconds": round(time.monotonic() - began, 1), "found": found}
        self.write()
        return found

    def write(self) -> None:
        """What there is so far: whoever has the GPU for ten minutes may be cut off."""
        if self.out is not None:
            self.report |= {"failed": self.failed, "seconds": round(time.monotonic() - self.began)}
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "gpu_suite.json").write_text(json.dumps(self.report, indent=1, default=str) + "\n")


# ---- build, tests, sanitizer ----


def missing_tools() -> list[str]:
    lack = [tool for tool in ("nvcc", "cmake", "ninja") if shutil.which(tool) is None]
    return lack + [module for module in ("torch", "numpy", "pybind11") if importlib.util.find_spec(module) is None]


def build(site: Path, arch: str) -> dict[str, Any]:
    """The package in `site`, with a fresh _C for this Python and GPU."""
    import pybind11

    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "python/splip", site / "splip", ignore=without)
    shutil.copytree(ROOT / "export", site / "splip/export", ignore=without)
    folder = site.parent / "build"
    flags = {
        "CMAKE_CUDA_FLAGS": "-Xptxas=-v",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": site / "splip",
        "Python_EXECUTABLE": sys.executable,
        "SPLIP_CUDA": "on",
        "SPLIP_CUDA_ARCHS": arch,
        "SPLIP_VERSION": "gpu-suite",
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in flags.items())]
    log = ""
    for command in (configure, ["cmake", "--build", folder]):
        run = subprocess.run(command, capture_output=True, text=True)
        log += run.stdout + run.stderr
        if run.returncode:
            raise RuntimeError(f"the build failed:\n{log[-4000:]}")
    if "warning" in log:
        print("\n".join(line for line in log.splitlines() if "warning" in line))
    sys.path.insert(0, str(ROOT / "tools"))
    import cuda_resources

    kernels = cuda_resources.parse(log)
    names = cuda_resources.readable([k.name for k in kernels])
    return {
        "arch": arch,
        "kernels": {name: k._asdict() | {"name": name} for name, k in zip(names, kernels, strict=True)},
        "spilling": [name for name, k in zip(names, kernels, strict=True) if k.stack or k.spills],
    }


def environment(site: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "OMP_WAIT_POLICY": "passive", **more}


def run_tests(site: Path, seconds: float, collect_only: bool) -> dict[str, Any]:
    """The tests marked cuda; those of the package's other parts need more than torch."""
    for module in ("pytest", "PIL"):
        if importlib.util.find_spec(module) is None:
            return {"not run": f"no module {module}"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "--tb=short"]
    command += ["--maxfail=8", "-p", "no:randomly"]
    command += ["--rootdir", ROOT, *(ROOT / "tests" / name for name in TESTS)]
    command += ["--collect-only"] if collect_only else []
    command += ["-k", " and ".join(f"not {way}" for way in sorted(LEAVE_OUT))] if LEAVE_OUT else []
    run = subprocess.run(command, env=environment(site), capture_output=True, text=True, timeout=seconds, cwd=site)
    lines = run.stdout.strip().splitlines()
    print("\n".join(lines[-1:] if run.returncode == 0 else lines[-40:]), run.stderr[-2000:])
    if run.returncode:
        raise RuntimeError(f"pytest: exit code {run.returncode}: {lines[-1] if lines else ''}")
    return {"summary": lines[-1]}


def sanitize(site: Path, tool: str, seconds: float) -> dict[str, Any]:
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        "--kernel-name-exclude",
        "kernel_substring=at::",
    ]
    command += itself("--small-cases")
    variables = environment(site, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=seconds, cwd=site)
    last = [line for line in run.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    print("\n".join(last) or run.stdout[-2000:], run.stderr[-2000:])
    if run.returncode:
        raise RuntimeError(f"{tool}: exit code {run.returncode}\n{run.stdout[-3000:]}")
    return {"summary": last}


def itself(task: str) -> list[str]:
    """The command for a part of the suite in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), task]
    return command + (["--leave-out", *sorted(LEAVE_OUT)] if LEAVE_OUT else [])


def try_wgmma() -> None:
    """It against mma.sync, many times: one tile and many, every way to use the shared memory."""
    import torch

    from splip import ops

    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for Q, N, D in [(1, 300, 64), (130, 1100, 24), (200, 30_000, 512), (1024, 200_000, 512), (300, 50_000, 768)]:
            queries, gallery = (torch.randn(n, D, device="cuda").to(dtype) for n in (Q, N))
            for searched in (gallery, ops.eight_bit_gallery(gallery)):
                want = ops._cuda_topk(queries, searched, 10, None, "tiles128")
                for _ in range(5):
                    got = ops._cuda_topk(queries, searched, 10, None, "wgmma")
                    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), (dtype, Q, N, D)
    print("wgmma: all right")


def trial(site: Path) -> dict[str, Any]:
    """Whether wgmma can be run at all: a kernel that hangs or fails would take all that follows with it."""
    command = itself("--try-wgmma")
    LEAVE_OUT.add("wgmma")  # unless all ends well
    code = "import torch; from splip import _C; print(_C.cuda_has_wgmma(0))"
    asked = [sys.executable, "-c", code]
    has = subprocess.run(asked, env=environment(site), capture_output=True, text=True, cwd=site)
    if has.stdout.strip() != "True":
        return {"not run": has.stderr.strip() or "not a GPU of compute capability 9.0, or not built for it"}
    run = subprocess.run(command, env=environment(site), capture_output=True, text=True, timeout=60, cwd=site)
    if run.returncode:
        raise RuntimeError(f"wgmma: {run.stderr[-2000:]}")
    LEAVE_OUT.discard("wgmma")
    return {"summary": run.stdout.strip()}


def small_cases() -> None:
    """Every kernel once on little data, with odd sizes, checked: what the sanitizer watches."""
    import torch

    from splip import ops, reference

    torch.manual_seed(0)
    device = torch.device("cuda")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for Q, N, D, K in [(3, 700, 40, 10), (70, 5000, 72, 5), (2, 333, 17, 333)]:
            queries, gallery = torch.randn(Q, D).to(dtype), torch.randn(N, D).to(dtype)
            want = reference.cosine_topk(queries, gallery, K)[0]
            rows = gallery.to(device)
            for number, scan in enumerate(scan for scan in ops.SCANS if scan not in LEAVE_OUT):
                allowed = torch.ones(N, dtype=torch.bool, device=device) if number % 2 else None
                for searched in (rows, ops.eight_bit_gallery(rows)):
                    got = ops._cuda_topk(queries.to(device), searched, K, allowed, scan)
                    torch.testing.assert_close(got[0].cpu(), want, rtol=0, atol=2e-6)
        equal = torch.randn(1, 16).to(dtype).repeat(6000, 1).to(device)  # every row a candidate: the exact scan
        for searched in (equal, ops.eight_bit_gallery(equal), ops.eight_bit_gallery(equal, keep_rows=False)):
            got = ops._cuda_topk(equal[:2], searched, 4, None, "tiles128")
            assert got[1].tolist() == [[0, 1, 2, 3]] * 2, got[1]
        for D, own in ((768, False), (17, True), (128, True)):
            x = torch.randn(5, 9, D).to(dtype).to(device).requires_grad_()
            prompts = torch.randn(*((5,) if own else ()), 3, D).to(dtype).to(device).requires_grad_()
            affine = [torch.randn(D, device=device).requires_grad_() for _ in range(2)]
            got = ops.prompt_layernorm(x, prompts, *affine, replace=2)
            grads = torch.autograd.grad(got, [x, prompts, *affine], [torch.randn_like(t) for t in got])
            assert all(g.isfinite().all() for g in grads)
        for S, side in ((16, 48), (14, 42), (5, 25)):
            images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
            permutation = torch.stack([torch.randperm(9) for _ in range(2)]).to(device)
            for pixels in (images, images.contiguous(), images / 255):
                got = ops.patchify(pixels, S, MEAN, STD, permutation, dtype=dtype)
                assert torch.equal(got, reference.patchify(pixels, S, MEAN, STD, permutation, dtype=dtype))
            pixels = (images / 255).requires_grad_()
            ops.patchify(pixels, S, MEAN, STD, permutation, dtype=dtype).sum().backward()
    torch.cuda.synchronize()
    print("small cases: all right")


# ---- timing ----


def time_ms(sets: list[Callable[[], Any]], seconds: float = 0.3) -> dict[str, Any]:
    """Median, p10 and p90 of one call in ms: the calls of all sets in one CUDA graph, replayed between two events.

    Sets are the same call on different inputs, together larger than the L2 cache. Where a call cannot be recorded in
    a graph, they run one after another.
    """
    import torch

    for call in sets[:2]:
        call()
    torch.cuda.synchronize()

    def all_sets() -> None:
        for call in sets:
            call()

    graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            all_sets()
    except RuntimeError:
        graph = None
        torch.cuda.synchronize()
    run = all_sets if graph is None else graph.replay
    run()
    torch.cuda.synchronize()
    times: list[float] = []
    began = time.monotonic()
    while len(times) < 3 or (time.monotonic() - began < seconds and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(sets))
    times.sort()
    del graph
    return {
        "median": statistics.median(times),
        "p10": times[len(times) // 10],
        "p90": times[len(times) * 9 // 10],
        "graph": run is not all_sets,
    }


def ceilings() -> dict[str, float]:
    """What this card does: bytes of a large copy, both ways, and a large bf16 product."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = time_ms([functools.partial(target.copy_, source)])["median"]
    del source, target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = time_ms([functools.partial(torch.matmul, a, b)], 1.0)["median"]
    bytes_a, bytes_b = (torch.randint(-127, 128, (8192, 8192), device="cuda", dtype=torch.int8) for _ in range(2))
    # The second factor by columns, as the kernel wants it.
    eight = attempt([functools.partial(torch._int_mm, bytes_a, bytes_b.t())])
    found = {
        "copy_GB_per_s": 2 * (1 << 30) / copy / 1e6,
        "bf16_TFLOP_per_s": 2 * 8192**3 / product / 1e9,
        # Twice bf16's by the data sheet, if it cannot be measured.
        "int8_TOP_per_s": 2 * 8192**3 / eight.get("median", product / 2) / 1e9,
    }
    print("   " + ", ".join(f"{name} {rate:.0f}" for name, rate in found.items()))
    return found


def floor_of(
    moved: float, products: float, ceiling: dict[str, float], rate: str = "bf16_TFLOP_per_s"
) -> dict[str, Any]:
    """The least time in ms, what sets it, and from what."""
    memory, arithmetic = moved / ceiling["copy_GB_per_s"] / 1e6, 2 * products / ceiling[rate] / 1e9
    bound = "memory" if memory >= arithmetic else "arithmetic"
    return {"floor_ms": max(memory, arithmetic), "bound": bound, "bytes": moved, "products": products}


def row_of(op: str, sizes: str, floor: dict[str, Any], times: dict[str, Any], **more: Any) -> dict[str, Any]:
    own = times["splip"]["median"]
    ratios = {n: t["median"] / own for n, t in times.items() if "median" in t}
    row = {"op": op, "sizes": sizes, "ms": own, **floor, "of_floor": floor["floor_ms"] / own,
           "GB_per_s": floor["bytes"] / own / 1e6, "TFLOP_per_s": 2 * floor["products"] / own / 1e9,
           "ratio": ratios, "times": times, **more}  # fmt: skip
    others = "  ".join(
        f"{n} {t['median']:.3f} ({ratios[n]:.1f}x)" if "median" in t else f"{n}: {t['error']}"
        for n, t in times.items()
        if n != "splip"
    )
    print(f"   {op} {sizes}: {own:.3f} ms, {row['of_floor']:.0%} of the {floor['bound']} floor; {others}", flush=True)
    return row


def attempt(sets: list[Callable[[], Any]]) -> dict[str, Any]:
    """Time of a peer; what it said if it cannot (out of memory, mostly)."""
    import torch

    try:
        return time_ms(sets)
    except Exception as e:
        torch.cuda.empty_cache()
        return {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:100]}"}


# ---- benchmarks ----


@functools.lru_cache(maxsize=1)
def make_gallery(N: int, D: int, dtype: str, kind: str) -> Any:
    """[N, D] unit rows on the GPU, made in pieces, and 4,096 queries like them."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    gallery = torch.empty(N, D, dtype=getattr(torch, dtype), device="cuda")
    common, centres = torch.randn(1, D, device="cuda"), 0.5 * torch.randn(1000, D, device="cuda")

    def rows(n: int) -> Any:
        if kind != "clustered":
            return F.normalize(torch.randn(n, D, device="cuda"), dim=1)
        groups = centres[torch.randint(1000, (n,), device="cuda")]
        return F.normalize(common + groups + 0.5 * torch.randn(n, D, device="cuda"), dim=1)

    for first in range(0, N, CHUNK):
        part = gallery[first : first + CHUNK]
        part.copy_(rows(len(part)))
    queries = rows(4096)
    if kind == "ascending":  # all queries lie near the first, so the order is theirs too
        order = (gallery @ queries[0].to(gallery.dtype)).argsort()
        gallery = gallery[order]
        queries = F.normalize(queries[:1] + 0.02 * torch.randn(4096, D, device="cuda"), dim=1)
    return gallery, queries.to(gallery.dtype)


@functools.lru_cache(maxsize=1)
def make_eight_bits(N: int, D: int, kind: str) -> Any:
    from splip import ops

    return ops.eight_bit_gallery(make_gallery(N, D, "float16", kind)[0])


def forget_galleries() -> None:
    make_eight_bits.cache_clear()
    make_gallery.cache_clear()


def exact_topk(queries: Any, gallery: Any, k: int, allowed: Any) -> Any:
    """Scores summed in float64 and indices, ties by index."""
    import torch

    found = []
    for first in range(0, len(gallery), CHUNK):
        part = gallery[first : first + CHUNK].double()
        part = part / part.norm(dim=1, keepdim=True)
        scores = ((queries.double() / queries.double().norm(dim=1, keepdim=True)) @ part.T).float()
        if allowed is not None:
            scores.masked_fill_(~allowed[first : first + CHUNK], float("-inf"))
        s, order = scores.sort(dim=1, descending=True, stable=True)
        found.append((s[:, :k], order[:, :k] + first))
    scores, ids = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), ids.gather(1, order)


def bench_topk(case: tuple[Any, ...], ceiling: dict[str, float], left: float) -> dict[str, Any]:
    import torch

    from splip import ops

    Q, N, D, K, dtype, kind = case
    shape = (N, D, "float16" if dtype == "int8" else dtype, "random" if "allowed" in kind else kind)
    gallery, pool = make_gallery(*shape)
    searched = make_eight_bits(N, D, shape[3]) if dtype == "int8" else gallery
    allowed = torch.rand(N, device="cuda") < 0.1 if "allowed" in kind else None
    batches = [pool[torch.randperm(4096, device="cuda")[:Q]] for _ in range(4)]

    def whole(q: Any) -> Any:
        scores = q @ gallery.T
        return (scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))).topk(K)

    def chunked(q: Any) -> Any:
        found = []
        for first in range(0, N, CHUNK):
            s, i = (q @ gallery[first : first + CHUNK].T).topk(min(K, N - first))
            found.append((s, i + first))
        scores, ids = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        s, order = scores.topk(K)
        return s, ids.gather(1, order)

    def on_all(search: Callable[[Any], Any]) -> list[Callable[[], Any]]:
        return [functools.partial(search, q) for q in batches]

    def splip(q: Any) -> Any:
        return ops._cuda_topk(q, searched, K, allowed)

    times = {"splip": time_ms(on_all(splip))}
    got_scores, got = splip(batches[0])
    want_scores, want = exact_topk(batches[0][:16], gallery, K, allowed)
    recall = float((got[:16, :, None] == want[:, None, :]).any(2).float().mean())
    error = float((got_scores[:16] - want_scores).abs().max())
    size = gallery.element_size()
    if Q * N * size < 20e9:
        times["torch"] = attempt(on_all(whole))
    if allowed is None:
        times["torch in chunks"] = attempt(on_all(chunked))
    if left > 120 and case in TOPK_COMPILED:
        times["torch.compile"] = attempt(on_all(torch.compile(whole)))
    if dtype == "int8":
        times["splip, float16"] = attempt(on_all(lambda q: ops._cuda_topk(q, gallery, K, allowed)))
        floor = floor_of(N * (D + 8), Q * N * D, ceiling, "int8_TOP_per_s")
    else:
        floor = floor_of(N * D * size, Q * N * D * (2 if dtype == "float32" else 1), ceiling)
    sizes = f"Q={Q} N={N:,} D={D} K={K} {dtype}, {kind}"
    equal = bool(torch.equal(got[:16], want))
    return row_of("cosine_topk", sizes, floor, times, recall=recall, error=error, ids_equal_float64=equal)


def sweep(ceiling: dict[str, float]) -> dict[str, Any]:
    """ms of every way to multiply by the number of queries: is the choice the right one, do they agree?"""
    import torch

    from splip import _C, ops

    N, D, K = 1_000_000, 512, 10
    found: dict[str, Any] = {"automatic": {"stream": _C.cuda_stream_queries, "tiles64": _C.cuda_narrow_queries}}
    for dtype in ("bfloat16", "int8", "float32"):
        gallery, pool = make_gallery(N, D, "float16" if dtype == "int8" else dtype, "random")
        searched = make_eight_bits(N, D, "random") if dtype == "int8" else gallery
        size, rate = (1, "int8_TOP_per_s") if dtype == "int8" else (gallery.element_size(), "bf16_TFLOP_per_s")
        ways = [s for s in ops.SCANS if s not in LEAVE_OUT | {"automatic"} and (s, dtype) != ("wgmma", "float32")]
        rows, wrong = {}, []
        for Q in SWEEP:
            queries, times, want = pool[:Q], {}, None
            for way in ways:
                if SWEEP_MOST.get(way, Q) < Q:
                    continue
                call = functools.partial(ops._cuda_topk, queries, searched, K, None, way)
                _, ids = call()
                want = ids if want is None else want
                if not torch.equal(ids, want):
                    wrong.append(f"{way} at Q={Q}: {float((ids != want).float().mean()):.2%} of the ids differ")
                times[way] = time_ms([call], 0.1)["median"]
            floor = floor_of(N * D * size, Q * N * D * (2 if dtype == "float32" else 1), ceiling, rate)["floor_ms"]
            best = min(times, key=lambda way: times[way])
            rows[Q] = {"ms": times, "best": best, "of_floor": floor / times[best]}
            said = "  ".join(f"{way} {ms:.3f}" for way, ms in times.items())
            print(f"   {dtype} Q={Q}: {said}; best {best}, {floor / times[best]:.0%} of the floor", flush=True)
        found[dtype] = {"queries": rows, "fastest_up_to": last_of_each(rows), "wrong": wrong}
        print(f"   {dtype}: fastest up to {found[dtype]['fastest_up_to']}; chosen up to {found['automatic']}; {wrong}")
    return found


def last_of_each(rows: dict[int, dict[str, Any]]) -> dict[str, int]:
    """The most queries at which each way was the fastest."""
    return {row["best"]: Q for Q, row in sorted(rows.items())}


def copies_beyond_cache(moved: int) -> int:
    """Input sets whose bytes together are four times the L2 cache."""
    import torch

    return max(2, min(64, 4 * torch.cuda.get_device_properties(0).L2_cache_size // moved + 1))


def bench_layernorm(case: tuple[Any, ...], ceiling: dict[str, float]) -> list[dict[str, Any]]:
    import torch
    import torch.nn.functional as F

    from splip import ops, reference

    B, L, P, D, name = case
    dtype = getattr(torch, name)
    T, size = L + P, torch.tensor([], dtype=dtype).element_size()
    forward_bytes = size * D * (B * L + P + 2 * B * T)
    sets = []
    for _ in range(copies_beyond_cache(forward_bytes)):
        x, grads = torch.randn(B, L, D, device="cuda", dtype=dtype), torch.randn(2, B, T, D, device="cuda", dtype=dtype)
        sets.append((x, grads[0], grads[1]))
    prompts = torch.randn(1, P, D, device="cuda", dtype=dtype)
    gamma, beta = torch.randn(D, device="cuda"), torch.randn(D, device="cuda")
    low = gamma.to(dtype), beta.to(dtype)

    def naive(x: Any, prompts: Any, gamma: Any, beta: Any) -> Any:
        tokens = torch.cat([x[:, :1], prompts.expand(B, -1, -1), x[:, 1:]], 1)
        return tokens, F.layer_norm(tokens, (D,), gamma, beta)

    compiled = torch.compile(naive)
    one = ops._prompt_layernorm_native
    times = {
        "splip": time_ms([functools.partial(one, x, prompts, gamma, beta, 1e-5, 0) for x, _, _ in sets]),
        "torch": attempt([functools.partial(naive, x, prompts, *low) for x, _, _ in sets]),
    }
    if case == LAYERNORM[0]:
        times["torch.compile"] = attempt([functools.partial(compiled, x, prompts, *low) for x, _, _ in sets])
    sizes = f"B={B} L={L} P={P} D={D} {name}"
    got = one(sets[0][0], prompts, gamma, beta, 1e-5, 0)[1]
    want = reference.prompt_layernorm(sets[0][0][:8].float(), prompts.float(), gamma, beta)[1]
    error = float((got[:8].float() - want).abs().max())
    rows = [row_of("prompt_layernorm", sizes, floor_of(forward_bytes, 0, ceiling), times, error=error)]

    def both(x: Any, d_tokens: Any, d_normed: Any) -> Any:
        tokens, _, mean, rstd = one(x, prompts, gamma, beta, 1e-5, 0)
        return ops._prompt_layernorm_backward_native(d_tokens, d_normed, tokens, gamma, mean, rstd, 1, L, 0)

    def both_by(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Any, d_tokens: Any, d_normed: Any) -> Any:
            inputs = [t.detach().requires_grad_() for t in (x, prompts, *low)]
            return torch.autograd.grad(function(*inputs), inputs, (d_tokens, d_normed))

        return run

    times = {
        "splip": time_ms([functools.partial(both, *s) for s in sets]),
        "torch": attempt([functools.partial(both_by(naive), *s) for s in sets]),
    }
    if case == LAYERNORM[0]:
        times["torch.compile"] = attempt([functools.partial(both_by(compiled), *s) for s in sets])
    floor = floor_of(forward_bytes + size * D * (3 * B * T + B * L), 0, ceiling)
    rows.append(row_of("prompt_layernorm + backward", sizes, floor, times))
    return rows


def bench_patchify(case: tuple[Any, ...], ceiling: dict[str, float]) -> list[dict[str, Any]]:
    import torch

    from splip import ops, reference

    def naive(images: Any, tiles: Any) -> Any:
        """The reference's operations; its constants are on the GPU already."""
        if tiles is not None:
            images = reference.shuffle_tiles(images, tiles, 3)
        values = images.float().div(byte).sub(mean).div(std)
        patches = values.reshape(B, 3, side // S, S, side // S, S).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(B, (side // S) ** 2, 3 * S * S).to(dtype)

    B, side, S, name = case
    byte, mean, std = (torch.tensor(v, device="cuda").view(1, -1, 1, 1) for v in ((255.0,), MEAN, STD))
    dtype = getattr(torch, name)
    pixels = B * 3 * side * side
    moved = pixels * (1 + torch.tensor([], dtype=dtype).element_size())
    pictures = [torch.randint(0, 256, (B, side, side, 3), dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
                for _ in range(copies_beyond_cache(moved))]  # fmt: skip
    permutation = torch.stack([torch.randperm(9) for _ in range(B)]).cuda()
    compiled = torch.compile(naive)
    rows = []
    for kind, tiles in (("shuffled", permutation), ("plain", None)):
        grid = 3 if tiles is not None else 1
        native = [functools.partial(ops._patchify_native, p, tiles, S, MEAN, STD, grid, dtype) for p in pictures]
        plain = [functools.partial(naive, p, tiles) for p in pictures]
        if not torch.equal(native[0](), plain[0]()):
            raise RuntimeError(f"patchify S={S} {name} {kind}: not what the reference gives, bit for bit")
        times = {"splip": time_ms(native), "torch": attempt(plain)}
        if case == PATCHIFY[0]:
            times["torch.compile"] = attempt([functools.partial(compiled, p, tiles) for p in pictures])
        sizes = f"B={B} side={side} S={S} {name}, {kind}"
        rows.append(row_of("patchify", sizes, floor_of(moved, 0, ceiling), times, error=0.0))
    return rows


# ---- the time of every kernel ----


def kernel_times(call: Callable[[], Any]) -> dict[str, Any]:
    """Microseconds of each kernel that a call launches, of all its launches together."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    sys.path.insert(0, str(ROOT / "tools"))
    import cuda_resources

    calls = 3
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    spent = {e.key: e.self_device_time_total / calls for e in seen.key_averages() if e.self_device_time_total > 0}
    names = cuda_resources.readable(list(spent))
    return {name: round(us, 2) for name, us in sorted(zip(names, spent.values(), strict=True), key=lambda p: -p[1])}


def profile_kernels() -> dict[str, Any]:
    """Of calls that are measured elsewhere without the profiler, which slows them."""
    import torch

    from splip import ops

    found = {}
    N, D, K = 1_000_000, 512, 10
    for name in ("bfloat16", "int8"):
        gallery, pool = make_gallery(N, D, "float16" if name == "int8" else name, "random")
        searched = make_eight_bits(N, D, "random") if name == "int8" else gallery
        cases = [
            (1, "stream"),
            (32, "stream"),
            (64, "tiles64"),
            (1024, "tiles128"),
            (1024, "tiles256"),
            (1024, "wgmma"),
        ]
        for Q, scan in cases:
            if scan in LEAVE_OUT:
                continue
            call = functools.partial(ops._cuda_topk, pool[:Q], searched, K, None, scan)
            found[f"cosine_topk Q={Q} N={N:,} D={D} K={K} {name}, {scan}"] = kernel_times(call)
    B, L, P, D, name = LAYERNORM[0]
    dtype = getattr(torch, name)
    x, prompts = torch.randn(B, L, D, device="cuda", dtype=dtype), torch.randn(P, D, device="cuda", dtype=dtype)
    leaves = [t.requires_grad_() for t in (x, prompts, torch.randn(D, device="cuda"), torch.randn(D, device="cuda"))]

    def both() -> Any:
        out = ops.prompt_layernorm(*leaves)
        return torch.autograd.grad(out, leaves, [torch.ones_like(t) for t in out])

    found[f"prompt_layernorm + backward {LAYERNORM[0]}"] = kernel_times(both)
    for case in PATCHIFY[:2]:
        B, side, S, name = case
        images = torch.randint(0, 256, (B, side, side, 3), dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
        tiles = torch.stack([torch.randperm(9) for _ in range(B)]).cuda()
        cut = functools.partial(ops.patchify, images, S, MEAN, STD, tiles, dtype=getattr(torch, name))
        found[f"patchify {case}"] = kernel_times(cut)
    return found


def kernels(site: Path, seconds: float) -> Any:
    """In a process of its own: the profiler's hooks would stay in this one."""
    run = subprocess.run(
        itself("--kernels"), env=environment(site), capture_output=True, text=True, timeout=seconds, cwd=site
    )
    if run.returncode:
        raise RuntimeError(f"profile of the kernels: {run.stderr[-2000:]}")
    found = json.loads(run.stdout.strip().splitlines()[-1])
    for case, times in found.items():
        print(f"   {case}: " + ", ".join(f"{name} {us:.0f} us" for name, us in list(times.items())[:4]))
    return found


def tensorrt(site: Path, seconds: float) -> Any:
    """The export's own check; it needs more packages than torch, and may not be there."""
    code = "import json; from splip.export.gpu_check import gpu_check; print(json.dumps(gpu_check()))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment(site), capture_output=True, text=True, timeout=seconds, cwd=site)
    if run.returncode:
        why = (run.stderr.strip().splitlines() or ["no output"])[-1]
        if "ModuleNotFoundError" in why or "ImportError" in why:
            return {"not run": why}
        raise RuntimeError(f"TensorRT check: {run.stderr[-2000:]}")
    found = json.loads(run.stdout.strip().splitlines()[-1])
    print(json.dumps(found, indent=1)[:2000])
    return found


# ---- the report ----


def machine() -> dict[str, Any]:
    import torch

    info: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        info |= {"gpu": p.name, "multiprocessors": p.multi_processor_count, "L2_MB": p.L2_cache_size / 2**20,
                 "memory_GB": p.total_memory / 2**30, "capability": f"{p.major}.{p.minor}"}  # fmt: skip
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True) if shutil.which("nvcc") else None
    info |= {"commit": git.stdout.strip(), "nvcc": nvcc.stdout.strip().splitlines()[-1] if nvcc else None}
    return info


def markdown(report: dict[str, Any]) -> str:
    ceiling = report.get("ceilings") or {}
    lines = [f"# {report['machine'].get('gpu', 'no GPU')}, torch {report['machine'].get('torch')}", ""]
    if "copy_GB_per_s" in ceiling:
        lines += [
            f"Copy {ceiling['copy_GB_per_s']:.0f} GB/s, bf16 product {ceiling['bf16_TFLOP_per_s']:.0f} TFLOP/s, "
            f"int8 {ceiling['int8_TOP_per_s']:.0f} TOP/s.",
            "",
        ]
    lines += ["| op | sizes | ms | of the floor | bound | against |", "| --- | --- | --- | --- | --- | --- |"]
    for row in report["rows"]:
        against = ", ".join(f"{n} {r:.1f}x" for n, r in row["ratio"].items() if n != "splip")
        lines.append(
            f"| {row['op']} | {row['sizes']} | {row['ms']:.3f} | {row['of_floor']:.0%} | {row['bound']} | {against} |"
        )
    for dtype, swept in (report["stages"].get("sweep", {}).get("found") or {}).items():
        if not isinstance(swept, dict) or "queries" not in swept:
            continue
        ways = list(dict.fromkeys(way for row in swept["queries"].values() for way in row["ms"]))
        lines += [
            "",
            f"| {dtype}, ms by Q | {' | '.join(ways)} | of the floor |",
            "| --- |" + " --- |" * (len(ways) + 1),
        ]
        for Q, row in swept["queries"].items():
            cells = [f"{row['ms'][way]:.3f}" if way in row["ms"] else "" for way in ways]
            lines.append(f"| {Q} | {' | '.join(cells)} | {row['of_floor']:.0%} |")
    lines += ["", *(f"- skipped {s['stage']}: {s['why']}" for s in report["skipped"])]
    for name, stage in report["stages"].items():
        found = stage["found"]
        if isinstance(found, dict) and ({"error", "not run", "summary"} & found.keys()):
            said = found.get("error") or found.get("not run") or found.get("summary")
            lines.append(f"- {name} ({stage['seconds']} s): {said}")
    return "\n".join(lines) + "\n"


Job = tuple[str, Callable[[], Any]]


def benchmarks(suite: Suite, ceiling: dict[str, float]) -> tuple[list[Job], list[Job]]:
    """Names and work: the most telling first, in case the time runs out."""
    import torch

    room = torch.cuda.get_device_properties(0).total_memory
    topk: list[Job] = []
    for case in TOPK:
        name, needs = f"cosine_topk {case}", 3 * case[1] * case[2] * (4 if case[4] == "float32" else 2)
        if needs < room:
            topk.append((name, lambda case=case: bench_topk(case, ceiling, suite.left())))
        else:
            suite.skip(name, f"needs {needs / 2**30:.0f} GB of GPU memory")
    layernorm = [(f"prompt_layernorm {c}", functools.partial(bench_layernorm, c, ceiling)) for c in LAYERNORM]
    patches = [(f"patchify {c}", functools.partial(bench_patchify, c, ceiling)) for c in PATCHIFY]
    return (
        [layernorm[0], patches[0], *topk[:TELLING]],
        [*topk[TELLING:], *layernorm[1:], *patches[1:]],
    )


def run_benchmarks(suite: Suite, jobs: list[Job], keep: float) -> None:
    """keep: seconds to leave for what comes after."""
    for name, job in jobs:
        for row in listed(suite.stage(name, 25 + keep, job)):
            suite.report["rows"].append(row)
            if row.get("recall", 1) < 1 or not row.get("ids_equal_float64", True):
                print(f"   recall {row['recall']}, ids those of float64: {row['ids_equal_float64']}")
                suite.failed = suite.failed or row["recall"] < 1
    forget_galleries()


def listed(found: Any) -> list[dict[str, Any]]:
    """Rows of a stage; none of one that was skipped or failed."""
    if found is None or (isinstance(found, dict) and "error" in found):
        return []
    return found if isinstance(found, list) else [found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-suite"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=510, help="time for everything (default: %(default)s)")
    parser.add_argument("--arch", help="compute capability to build for (default: the GPU's; 90a without one)")
    parser.add_argument("--dry-run", action="store_true", help="build, list the tests and the cases, run nothing")
    parser.add_argument("--small-cases", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kernels", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--try-wgmma", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--leave-out", nargs="*", default=[], help="ways to multiply that are not run, e.g. wgmma")
    args = parser.parse_args()
    LEAVE_OUT.update(args.leave_out)
    if args.try_wgmma:
        try_wgmma()
        return 0
    if args.small_cases:
        small_cases()
        return 0
    if args.kernels:
        print(json.dumps(profile_kernels()))
        return 0
    lack = missing_tools()
    if lack:
        print(f"gpu_suite: missing on this machine: {', '.join(lack)}", file=sys.stderr)
        return 1
    import torch

    suite = Suite(args.seconds, args.out)
    gpu = torch.cuda.is_available() and not args.dry_run
    arch = args.arch
    if arch is None:
        major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
        arch = f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
    suite.report["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        built = suite.stage("build", 60, lambda: build(site, arch))
        if not built or "error" in built:
            suite.failed = True
        else:
            if built["spilling"]:
                print(f"   kernels that spill: {built['spilling']}")
                suite.failed = True
            sys.path.insert(0, str(site))
            if gpu and "wgmma" not in LEAVE_OUT:
                suite.stage("wgmma", 60, lambda: trial(site))
            suite.stage("tests", 60, lambda: run_tests(site, 150, not gpu))
            if gpu:
                measure(suite, site)
            else:
                cases = [*(("cosine_topk", c) for c in TOPK), *(("prompt_layernorm", c) for c in LAYERNORM)]
                for op, case in [*cases, *(("patchify", c) for c in PATCHIFY)]:
                    suite.skip(f"{op} {case}", "no GPU")
                for name in ("compute-sanitizer", "sweep", "tensorrt"):
                    suite.skip(name, "no GPU")
    suite.write()
    (args.out / "gpu_suite.md").write_text(markdown(suite.report))
    print(markdown(suite.report))
    if suite.failed:
        return 1
    if not gpu and not args.dry_run:
        print("gpu_suite: no GPU")
        return 3
    return 0


def measure(suite: Suite, site: Path) -> None:
    """All that runs on the GPU but the tests: what says most first, then what can go if time is short."""
    ceiling = suite.stage("ceilings", 20, ceilings)
    if not ceiling or "error" in ceiling:
        suite.skip("benchmarks", "no ceilings to compare with")
        return
    suite.report["ceilings"] = ceiling
    first, others = benchmarks(suite, ceiling)
    run_benchmarks(suite, first, keep=130)
    swept = suite.stage("sweep", 110, lambda: sweep(ceiling)) or {}
    suite.failed = suite.failed or any(isinstance(s, dict) and s.get("wrong") for s in swept.values())
    forget_galleries()
    suite.stage("kernels", 50, lambda: kernels(site, min(60, suite.left())))
    if shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            suite.stage(tool, 50, lambda tool=tool: sanitize(site, tool, min(90, suite.left())))
    else:
        suite.skip("compute-sanitizer", "not on PATH")
    run_benchmarks(suite, others, keep=0)
    suite.stage("tensorrt", 60, lambda: tensorrt(site, suite.left() - 10))


if __name__ == "__main__":
    sys.exit(main())
