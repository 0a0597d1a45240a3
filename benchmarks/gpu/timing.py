"""Times by CUDA events, the floors beside them, and a row of the table."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

SECONDS = 0.15  # of a candidate; every case has several
Calls = Sequence[Callable[[], Any]]


def time_ms(sets: Calls, seconds: float = SECONDS) -> dict[str, Any]:
    """Median, p10 and p90 of one call in ms: the calls of all sets in one CUDA graph, replayed between two events.

    Sets are the same call on different inputs, together larger than the L2 cache. Where a call cannot be recorded in
    a graph, they run one after another. A call that takes long is measured three times.
    """
    for call in sets[:2]:
        call()
    torch.cuda.synchronize()

    def all_sets() -> None:
        for call in sets:
            call()

    graph, recorded = torch.cuda.CUDAGraph(), True
    try:
        with torch.cuda.graph(graph):
            all_sets()
    except RuntimeError:
        recorded = False
        torch.cuda.synchronize()
    run = graph.replay if recorded else all_sets
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
    return {
        "median": statistics.median(times),
        "p10": times[len(times) // 10],
        "p90": times[len(times) * 9 // 10],
        "graph": recorded,
    }


def attempt(sets: Calls, seconds: float = SECONDS) -> dict[str, Any]:
    """Time of a peer; what it said if it cannot (out of memory, mostly)."""
    try:
        return time_ms(sets, seconds)
    except Exception as e:
        torch.cuda.empty_cache()
        return {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:100]}"}


def copies_beyond_cache(moved: int) -> int:
    """Input sets whose bytes together are four times the L2 cache."""
    return max(2, min(64, 4 * torch.cuda.get_device_properties(0).L2_cache_size // moved + 1))


def floor_of(
    moved: float,
    products: float,
    ceiling: dict[str, float],
    rate: str = "bf16_TFLOP_per_s",
    bandwidth: str = "copy_GB_per_s",
) -> dict[str, Any]:
    """The least time in ms, what sets it, and from what. A scan only reads: its bandwidth is read_GB_per_s."""
    memory, arithmetic = moved / ceiling[bandwidth] / 1e6, 2 * products / ceiling[rate] / 1e9
    bound = "memory" if memory >= arithmetic else "arithmetic"
    return {"floor_ms": max(memory, arithmetic), "bound": bound, "bytes": moved, "products": products}


def scan_floor(Q: int, N: int, D: int, dtype: str, ceiling: dict[str, float]) -> dict[str, Any]:
    """Of a search: the gallery read once, Q * N * D products. int8: a scale and an error for each row, too."""
    if dtype == "int8":
        return floor_of(N * (D + 8), Q * N * D, ceiling, "int8_TOP_per_s", "read_GB_per_s")
    size = 4 if dtype == "float32" else 2
    # tf32 multiplies at half the rate.
    return floor_of(N * D * size, Q * N * D * (size / 2), ceiling, bandwidth="read_GB_per_s")


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
