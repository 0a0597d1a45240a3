"""How much memory a training step of ViT-B/32 holds at batch 192, the paper's, counted and not guessed.

    OMP_WAIT_POLICY=passive python benchmarks/bench_memory.py --save memory-cpu    # two minutes on one core

Every tensor that a step makes is counted when it is made and when it goes; the most that is alive at once is the step's. Beside it
lie the weights, what the optimiser keeps, and the batch. Steps are run with random weights at small batches; what is alive grows
by the same for each sketch, which the largest batch that is run checks, and so batch 192 is computed. A GPU's allocator adds its
own rounding and the libraries' workspaces.
"""

import argparse
import json
import time
import weakref
from typing import Any

import torch
from bench_train import build, stepper
from harness import RESULTS, machine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from splip.data.splits import find_split, prompt_name
from splip.train.objective import Objective

BACKBONE, WANTED = "ViT-B-32", 192


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made while it is on and are still there, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):  # what was there before is not the step's
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self._seen:
                self._note(tensor, 0)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self._seen:
                self._note(tensor, tensor.untyped_storage().nbytes())
        return out

    def _note(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        self._seen.add(id(storage))
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, id(storage), size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def size_of(tensors: Any) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def count(batch_size: int, precision: str) -> dict[str, float]:
    """Seconds of the second step and bytes of the third: the first makes what the optimiser keeps."""
    torch.manual_seed(0)
    classes = [prompt_name(name) for name in find_split("sketchy", "sketchy-2").seen]
    model = build(classes, BACKBONE)
    model.config.precision = precision  # type: ignore[assignment]
    objective, B, S = Objective(model), batch_size, model.backbone.image_size
    labels = torch.randint(0, len(classes), (B,))
    images = torch.randint(0, 256, (3 * B, 3, S, S), dtype=torch.uint8)
    both = torch.cat([labels, labels, (labels + 1) % len(classes)])
    batch = (images, both, torch.arange(3 * B), objective.pieces(B, torch.Generator().manual_seed(0)))
    step = stepper(model, objective, batch)
    step()
    began = time.process_time()  # of the processor: what else runs here disturbs it less
    step()
    seconds = time.process_time() - began
    model.zero_grad(set_to_none=True)
    with Alive() as alive:
        step()
    trained = size_of(model.trainable().values())
    return {
        "batch": batch_size,
        "step": alive.most,
        "weights": size_of([*model.parameters(), *model.buffers()]),
        "optimiser": 2 * trained,
        "pictures": size_of([images]),
        "seconds": round(seconds, 2),
    }


def computed(rows: list[dict[str, float]], wanted: int) -> dict[str, float]:
    """The line through the first two batches, at ``wanted``; and how far it is off at the last that was run."""
    (a, b), last = rows[:2], rows[-1]

    def at(name: str, size: float) -> float:
        return a[name] + (b[name] - a[name]) * (size - a["batch"]) / (b["batch"] - a["batch"])

    total = sum(at(name, wanted) for name in ("step", "weights", "optimiser", "pictures"))
    off = {f"{name}_off": abs(at(name, last["batch"]) / last[name] - 1) for name in ("step", "seconds")}
    return {"batch": wanted, "bytes": round(total), "seconds": round(at("seconds", wanted)), **off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 6], help="that are run (default: 2 4 6)")
    parser.add_argument("--save", default="memory-cpu", help="name of the JSON in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine("cpu"), "backbone": BACKBONE, "precisions": {}}
    for precision in ("fp32", "bf16"):
        rows = []
        for size in args.batches:
            rows.append(count(size, precision))
            print(precision, json.dumps(rows[-1]), flush=True)
        report["precisions"][precision] = {"run": rows, "computed": computed(rows, WANTED)}
        print(precision, report["precisions"][precision]["computed"], flush=True)
    (RESULTS / f"{args.save}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
