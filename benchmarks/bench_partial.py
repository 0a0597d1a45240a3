"""What is found while somebody still draws: unfinished sketches of the sample's validation classes.

    splip data sample --out sample
    python tools/build_strokes.py --out strokes
    python benchmarks/bench_partial.py --sample sample --strokes strokes --out runs/partial    # six minutes on two cores

Plain backbones beside SpLIP trained on finished sketches, and with half of them unfinished (``--data.partial 0.5``). All sketches
are traced; the clean ones are drawn from the strokes that they were made of, too. Unseen classes are not looked at.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import trainings

from splip.config import from_dict, merge, read
from splip.evaluation.config import EvalConfig
from splip.models.config import TrainConfig

TRAINED = {"whole": ("SpLIP, trained on whole sketches", 0.0), "parts": ("SpLIP, half of them in part", 0.5)}
PLAIN = {"splip-tiny-3": "splip-tiny-3, plain"}


def settings(row: str, seed: int, sample: Path, out: Path) -> TrainConfig:
    values: dict[str, Any] = {"seed": seed, "out": str(out), "eval_prompts": False}
    values |= {"data": {"root": str(sample), "partial": TRAINED[row][1]}}
    return from_dict(TrainConfig, merge(read("sample"), values), row)


def measure(name: str, sample: Path, strokes: Path | None, frame: Any) -> dict[str, Any]:
    """Both targets: a photo of the class among those of all validation classes, and the very photo among them."""
    import torch

    from splip.data import load_tree
    from splip.evaluation import TestSet, partial, protocols
    from splip.evaluation.test_set import View
    from splip.models import load_model
    from splip.models.names import resolve

    device = torch.device("cpu")
    config = EvalConfig(name, partial=True, strokes=strokes, frame=frame)
    model = load_model(resolve(name), device)
    data = replace(model.config.data, root=sample, dataset="tree", split=None)
    tree = load_tree(sample, data)
    chosen = [
        *protocols.build("zs", (), tree, tree.validation, 0),
        *protocols.build("fg", ("all",), tree, tree.validation, 0),
    ]
    test = TestSet(tree, tree.validation, data, model.backbone.image_size)
    views = [View(test, protocol, device) for protocol in chosen]
    found = partial.measure(config, model, data, test, views, device)["partial"]
    return {"without_strokes": found["without_strokes"], **dict(zip(("class", "photo"), found["results"], strict=True))}


def kept(out: Path, name: str, kind: str, sample: Path, strokes: Path | None, frame: Any) -> dict[str, Any]:
    """:func:`measure`, unless it is there."""
    file = out / "measured" / f"{'-'.join(Path(name).parts[-2:])}-{kind.replace(', ', '-').replace(' ', '-')}.json"
    if not file.is_file():
        found = measure(name, sample, strokes, frame)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found) + "\n")
    found = json.loads(file.read_text())
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, default=Path("sample"), help="folder of `splip data sample`")
    parser.add_argument("--strokes", type=Path, default=Path("strokes"), help="folder of tools/build_strokes.py")
    parser.add_argument("--out", type=Path, default=Path("runs/partial"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--save", default="partial", help="name of the JSON in benchmarks/results (default: partial)")
    args = parser.parse_args()
    tasks = [(row, seed, args.sample, args.out / row / f"seed-{seed}") for seed in args.seeds for row in TRAINED]
    trainings.run_all([settings(*task) for task in tasks], args.jobs)
    models = {name: (label, [name]) for name, label in PLAIN.items()}
    models |= {row: (TRAINED[row][0], [str(out) for r, _, _, out in tasks if r == row]) for row in TRAINED}
    sets = {
        "traced": (None, "page"),
        "strokes": (args.strokes, "page"),
        "strokes, whole frame": (args.strokes, "whole"),
    }
    rows = []
    for name, (label, each) in models.items():
        for kind, (strokes, frame) in sets.items():
            runs = [kept(args.out, model, kind, args.sample, strokes, frame) for model in each]
            rows.append({"name": name, "label": label, "strokes": kind, "runs": runs})
    report = {"machine": harness.machine("cpu"), "seeds": args.seeds, "classes": "validation", "rows": rows}
    trainings.write(args.save, report)


if __name__ == "__main__":
    main()
