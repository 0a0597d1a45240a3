"""A training step, the encoder and the TensorRT check, where the machine has what they need: more than torch."""

import functools
import json
import statistics
from collections.abc import Callable
from typing import Any

from .machine import missing
from .worker import Job

NEEDED = ("open_clip", "tyro", "yaml", "rich", "PIL")
DEVICE, BACKBONE, BATCH, ENCODED, REPEATS = "cuda", "ViT-B-32", 64, (1, 32, 256), 10
WHOLE, PRECISIONS = 192, ("fp32", "bf16", "fp16")  # of a step as it is trained


def need(job: Job, *modules: str) -> None:
    if lack := missing((), (*NEEDED, *modules)):
        job.skip(f"no module {', '.join(lack)}")


def milliseconds(run: Callable[[], Any]) -> float:
    """Median of one call, its kernel launches included: a step is more than a graph can hold."""
    import torch

    times = []
    for repeat in range(REPEATS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def training(job: Job) -> None:
    """A step and the encoder with the fused ops and with the same in plain PyTorch, float32."""
    need(job)
    import bench_train
    import torch

    from splip import ops
    from splip.data.splits import find_split, prompt_name
    from splip.train.objective import Objective

    torch.manual_seed(0)
    classes = [prompt_name(name) for name in find_split("sketchy", "sketchy-2").seen]
    model = bench_train.build(classes, BACKBONE).to(DEVICE)
    objective, B, S = Objective(model), BATCH, model.backbone.image_size
    labels = torch.randint(0, len(classes), (B,))
    images = torch.randint(0, 256, (3 * B, 3, S, S), dtype=torch.uint8)
    both = torch.cat([labels, labels, (labels + 1) % len(classes)])
    pieces = objective.pieces(B, torch.Generator().manual_seed(0))
    batch = tuple(t.to(DEVICE) for t in (images, both, torch.arange(3 * B), pieces))
    step = bench_train.stepper(model, objective, batch)
    compare(job, f"training step, {BACKBONE}, batch {B}", step)
    for precision in PRECISIONS:
        whole_step(job, model, precision)
    model.eval()
    for count in ENCODED:
        pictures = torch.randint(0, 256, (count, 3, S, S), dtype=torch.uint8, device=DEVICE)
        with torch.inference_mode():
            compare(job, f"encode_sketch, {BACKBONE}, batch {count}", functools.partial(model.encode_sketch, pictures))
            with ops.reference_only():
                want = model.encode_sketch(pictures)
            error = float((model.encode_sketch(pictures) - want).abs().max())
        if not error <= 1e-3:
            job.wrong(f"encode_sketch, batch {count}: off by {error:.3g}")


def whole_step(job: Job, model: Any, precision: str) -> None:
    """The paper's batch as `splip train` computes it: its time, and the most memory that the card holds during it."""
    import bench_train
    import torch

    from splip.train.objective import Objective
    from splip.train.precision import Scaler

    B, S, before = WHOLE, model.backbone.image_size, model.config.precision
    model.config.precision = precision
    objective, classes = Objective(model), len(model.classes)
    labels = torch.randint(0, classes, (B,))
    images = torch.randint(0, 256, (3 * B, 3, S, S), dtype=torch.uint8)
    both = torch.cat([labels, labels, (labels + 1) % classes])
    pieces = objective.pieces(B, torch.Generator().manual_seed(0))
    batch = tuple(t.to(DEVICE) for t in (images, both, torch.arange(3 * B), pieces))
    name = f"whole step, {BACKBONE}, batch {B}, {precision}"
    try:
        torch.cuda.reset_peak_memory_stats()
        took = milliseconds(bench_train.stepper(model, objective, batch, Scaler(precision, torch.device(DEVICE))))
        most = torch.cuda.max_memory_allocated()
    except torch.cuda.OutOfMemoryError:
        job.found(**{name: {"out_of_memory": True}})
        return
    finally:
        model.config.precision = before
        model.zero_grad(set_to_none=True)
    job.found(**{name: {"ms": took, "peak_bytes": most}})
    print(f"   {name}: {took:.2f} ms, at most {most / 1e9:.2f} GB", flush=True)


def compare(job: Job, name: str, run: Callable[[], Any]) -> None:
    from splip import ops

    own = milliseconds(run)
    with ops.reference_only():
        plain = milliseconds(run)
    job.found(**{name: {"splip_ms": own, "torch_ms": plain, "ratio": plain / own}})
    print(f"   {name}: {own:.2f} ms, in plain PyTorch {plain:.2f} ms", flush=True)


def tensorrt(job: Job) -> None:
    """The export's own check: engines built, run and compared with torch."""
    need(job, "tensorrt", "onnx")
    from splip.export.gpu_check import gpu_check

    found = gpu_check()
    if "skipped" in found:
        job.skip(found["skipped"])
    job.found(**found)
    print(json.dumps(found, indent=1)[:2000])
    for row in found["rows"]:
        if "error" in row:
            job.wrong(f"tensorrt {row['backbone']} {row['precision']}: {row['error']}")
