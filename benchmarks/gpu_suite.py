"""Everything that needs a GPU, in one command: build, tests, sanitizer, benchmarks, TensorRT.

    python benchmarks/gpu_suite.py --out results-here
    python benchmarks/gpu_suite.py --out results-here --dry-run      # all that needs no GPU

For a bare machine with nvcc, cmake, ninja, pybind11 and torch; no network, and nothing of splip installed. The
extension is built for the GPU at hand in a temporary folder, the tree stays as it is. Every time stands beside its
floor: the bytes that must move at this card's measured copy bandwidth, or the products at its measured bf16 rate,
whichever takes longer. Stages that do not fit in `--seconds` are skipped and named. Writes gpu_suite.json and
gpu_suite.md. Exit code 0: all passed; 1: a test, the sanitizer or a result failed; 3: no GPU.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["test_cuda.py", "test_cosine_topk.py", "test_prompt_layernorm.py", "test_patchify.py"]
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
CHUNK = 1 << 18  # gallery rows of a step of the chunked peer

# Q, N, D, K, dtype, gallery: what is measured, the most telling first.
TOPK = [
    (1, 10_000_000, 512, 10, "float16", "random"),
    (8, 10_000_000, 512, 10, "float16", "random"),
    (32, 10_000_000, 512, 10, "float16", "random"),
    (256, 10_000_000, 512, 10, "float16", "random"),
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
]
TOPK_COMPILED = (TOPK[4], TOPK[7])  # compiling takes seconds: a few cases of each op
LAYERNORM = [(256, 197, 6, 768, "bfloat16"), (256, 50, 6, 768, "bfloat16"), (256, 197, 6, 768, "float32")]
PATCHIFY = [
    (256, 224, 32, "bfloat16"),
    (256, 224, 16, "bfloat16"),
    (256, 224, 14, "bfloat16"),
    (256, 224, 32, "float32"),
]


class Suite:
    """Stages in turn, each with what it found, until the time is up."""

    def __init__(self, seconds: float) -> None:
        self.began, self.seconds = time.monotonic(), seconds
        self.report: dict[str, Any] = {"stages": {}, "skipped": []}
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
        return found


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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "--tb=short", "-x"]
    command += ["--rootdir", ROOT, *(ROOT / "tests" / name for name in TESTS)]
    command += ["--collect-only"] if collect_only else []
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
    command += [sys.executable, str(Path(__file__).resolve()), "--small-cases"]
    variables = environment(site, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=seconds, cwd=site)
    last = [line for line in run.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    print("\n".join(last) or run.stdout[-2000:], run.stderr[-2000:])
    if run.returncode:
        raise RuntimeError(f"{tool}: exit code {run.returncode}\n{run.stdout[-3000:]}")
    return {"summary": last}


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
            for scan in range(4):
                allowed = torch.ones(N, dtype=torch.bool, device=device) if scan % 2 else None
                got = ops._cosine_topk_native(queries.to(device), gallery.to(device), K, allowed, scan)
                torch.testing.assert_close(got[0].cpu(), want, rtol=0, atol=2e-6)
        equal = torch.randn(1, 16, dtype=dtype).repeat(6000, 1)  # every row a candidate: the exact scan
        got = ops._cosine_topk_native(equal[:2].to(device), equal.to(device), 4, None, 3)
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
    found = {"copy_GB_per_s": 2 * (1 << 30) / copy / 1e6, "bf16_TFLOP_per_s": 2 * 8192**3 / product / 1e9}
    print(f"   copy {found['copy_GB_per_s']:.0f} GB/s, bf16 product {found['bf16_TFLOP_per_s']:.0f} TFLOP/s")
    return found


def floor_of(moved: float, products: float, ceiling: dict[str, float]) -> tuple[float, str]:
    """The least time in ms, and what sets it."""
    memory, arithmetic = moved / ceiling["copy_GB_per_s"] / 1e6, 2 * products / ceiling["bf16_TFLOP_per_s"] / 1e9
    return max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic"


def row_of(
    op: str, sizes: str, floor: tuple[float, str], times: dict[str, Any], ours: str = "splip", **more: Any
) -> dict[str, Any]:
    own = times[ours]["median"]
    ratios = {n: t["median"] / own for n, t in times.items() if "median" in t}
    row = {"op": op, "sizes": sizes, "ms": own, "floor_ms": floor[0], "bound": floor[1],
           "of_floor": floor[0] / own, "ratio": ratios, "times": times, **more}  # fmt: skip
    others = "  ".join(
        f"{n} {t['median']:.3f} ({ratios[n]:.1f}x)" if "median" in t else f"{n}: {t['error']}"
        for n, t in times.items()
        if n != ours
    )
    print(f"   {op} {sizes}: {own:.3f} ms, {row['of_floor']:.0%} of the {floor[1]} floor; {others}", flush=True)
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


def exact_ids(queries: Any, gallery: Any, k: int, allowed: Any) -> Any:
    """Indices by scores summed in float64, ties by index."""
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
    return ids.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :k])


def bench_topk(case: tuple[Any, ...], ceiling: dict[str, float], left: float) -> dict[str, Any]:
    import torch

    from splip import ops

    Q, N, D, K, dtype, kind = case
    gallery, pool = make_gallery(N, D, dtype, "random" if "allowed" in kind else kind)
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

    def splip(q: Any, scan: int = 0) -> Any:
        return ops._cosine_topk_native(q, gallery, K, allowed, scan)

    times = {"splip": time_ms(on_all(splip))}
    _, got = splip(batches[0])
    few = batches[0][:16]
    want = exact_ids(few, gallery, K, allowed)
    exact = bool(torch.equal(got[:16], want))
    recall = float((got[:16, :, None] == want[:, None, :]).any(2).float().mean())
    size = gallery.element_size()
    if Q * N * size < 20e9:
        times["torch"] = attempt(on_all(whole))
    if allowed is None:
        times["torch in chunks"] = attempt(on_all(chunked))
    if left > 120 and case in TOPK_COMPILED:
        times["torch.compile"] = attempt(on_all(torch.compile(whole)))
    if N <= 1_000_000 and kind == "random" and K == 10:  # is the choice by Q the right one?
        for name, scan in (("stream", 1), ("tiles of 64", 2), ("tiles of 128", 3)):
            if scan != 1 or Q <= 256:
                times[name] = attempt(on_all(functools.partial(splip, scan=scan)))
    floor = floor_of(N * D * size, Q * N * D * (2 if dtype == "float32" else 1), ceiling)
    sizes = f"Q={Q} N={N:,} D={D} K={K} {dtype}, {kind}"
    return row_of("cosine_topk", sizes, floor, times, recall=recall, ids_equal_float64=exact)


def copies_beyond_cache(moved: int) -> int:
    """Input sets whose bytes together are four times the L2 cache."""
    import torch

    return max(2, min(64, 4 * torch.cuda.get_device_properties(0).L2_cache_size // moved + 1))


def bench_layernorm(case: tuple[Any, ...], ceiling: dict[str, float]) -> list[dict[str, Any]]:
    import torch
    import torch.nn.functional as F

    from splip import ops

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
    rows = [row_of("prompt_layernorm", sizes, floor_of(forward_bytes, 0, ceiling), times)]

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
    moved = forward_bytes + size * D * (3 * B * T + B * L)
    rows.append(row_of("prompt_layernorm + backward", sizes, floor_of(moved, 0, ceiling), times))
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
        rows.append(row_of("patchify", sizes, floor_of(moved, 0, ceiling), times))
    return rows


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
            f"Copy {ceiling['copy_GB_per_s']:.0f} GB/s, bf16 product {ceiling['bf16_TFLOP_per_s']:.0f} TFLOP/s.",
            "",
        ]
    lines += ["| op | sizes | ms | of the floor | bound | against |", "| --- | --- | --- | --- | --- | --- |"]
    for row in report["rows"]:
        against = ", ".join(f"{n} {r:.1f}x" for n, r in row["ratio"].items() if n != "splip")
        lines.append(
            f"| {row['op']} | {row['sizes']} | {row['ms']:.3f} | {row['of_floor']:.0%} | {row['bound']} | {against} |"
        )
    lines += ["", *(f"- skipped {s['stage']}: {s['why']}" for s in report["skipped"])]
    for name, stage in report["stages"].items():
        found = stage["found"]
        if isinstance(found, dict) and ({"error", "not run", "summary"} & found.keys()):
            said = found.get("error") or found.get("not run") or found.get("summary")
            lines.append(f"- {name} ({stage['seconds']} s): {said}")
    return "\n".join(lines) + "\n"


def benchmarks(suite: Suite) -> Iterator[dict[str, Any]]:
    ceiling = suite.stage("ceilings", 20, ceilings)
    if not ceiling or "error" in ceiling:
        suite.skip("benchmarks", "no ceilings to compare with")
        return
    suite.report["ceilings"] = ceiling
    work = [(f"cosine_topk {case}", functools.partial(bench_topk, case, ceiling)) for case in TOPK]
    small = [(f"prompt_layernorm {case}", functools.partial(bench_layernorm, case, ceiling)) for case in LAYERNORM]
    small += [(f"patchify {case}", functools.partial(bench_patchify, case, ceiling)) for case in PATCHIFY]
    # One of each small op and the most telling galleries first, in case the time runs out.
    small.sort(key=lambda job: str(LAYERNORM[0]) not in job[0] and str(PATCHIFY[0]) not in job[0])
    for name, job in [*small[:2], *work, *small[2:]]:
        yield from listed(suite.stage(name, 25, lambda: job(suite.left()) if "topk" in name else job()))
    make_gallery.cache_clear()


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
    args = parser.parse_args()
    if args.small_cases:
        small_cases()
        return 0
    lack = missing_tools()
    if lack:
        print(f"gpu_suite: missing on this machine: {', '.join(lack)}", file=sys.stderr)
        return 1
    import torch

    suite = Suite(args.seconds)
    gpu = torch.cuda.is_available() and not args.dry_run
    arch = args.arch
    if arch is None:
        major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
        arch = f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
    suite.report |= {"machine": machine(), "rows": []}
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
            suite.stage("tests", 60, lambda: run_tests(site, 180, not gpu))
            if gpu and shutil.which("compute-sanitizer"):
                for tool in ("memcheck", "racecheck"):
                    suite.stage(tool, 150, lambda: sanitize(site, tool, 120))
            else:
                suite.skip("compute-sanitizer", "no GPU" if not gpu else "not on PATH")
            if gpu:
                for row in benchmarks(suite):
                    suite.report["rows"].append(row)
                    if row.get("recall", 1) < 1:
                        print(f"   WRONG: recall {row['recall']}")
                        suite.failed = True
                suite.stage("tensorrt", 60, lambda: tensorrt(site, suite.left() - 10))
            else:
                cases = [*(("cosine_topk", c) for c in TOPK), *(("prompt_layernorm", c) for c in LAYERNORM)]
                for op, case in [*cases, *(("patchify", c) for c in PATCHIFY)]:
                    suite.skip(f"{op} {case}", "no GPU")
                suite.skip("tensorrt", "no GPU")
    args.out.mkdir(parents=True, exist_ok=True)
    suite.report |= {"failed": suite.failed, "seconds": round(time.monotonic() - suite.began)}
    (args.out / "gpu_suite.json").write_text(json.dumps(suite.report, indent=1, default=str) + "\n")
    (args.out / "gpu_suite.md").write_text(markdown(suite.report))
    print(markdown(suite.report))
    if suite.failed:
        return 1
    if not gpu and not args.dry_run:
        print("gpu_suite: no GPU")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
