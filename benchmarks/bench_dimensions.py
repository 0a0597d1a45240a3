"""What shorter vectors cost: mAP on the validation classes, after trainings with and without loss.matryoshka.

    OMP_WAIT_POLICY=passive python benchmarks/bench_dimensions.py --sample SAMPLE --runs RUNS --threads 1 --save cpu

SAMPLE is made by `splip data sample`. All runs have the settings of `--config sample` and one seed. A row is a size and
a way to keep it: floats, 8-bit numbers (of sketches and photos), bits (signs; the share of equal ones is what ranks).
`plain` is without the loss, measured at sizes that `splip eval` refuses; `not turned` is with it and --loss.rotate False;
`turned` is plain after the rotation to the principal axes of the training pictures, without a loss on sizes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import RESULTS, machine

from splip import config as settings
from splip.data.trees import load_tree
from splip.encoders import compact
from splip.evaluation.test_set import Features, TestSet
from splip.models import load_model
from splip.models.config import TrainConfig
from splip.models.names import LAST, in_folder
from splip.models.rotation import principal_axes
from splip.train import train

SIZES = (16, 32, 64, 128)
BITS = {"float32": 32, "int8": 8, "binary": 1}


def kept(features: Features, form: str) -> Features:
    """Features as a database would compare them in this form."""
    if form == "float32":
        return features
    changed = []
    for whole in (features.sketches, features.photos):
        vectors = whole.numpy()
        small = compact.int8(vectors) if form == "int8" else np.unpackbits(compact.ubinary(vectors), axis=1) * 2.0 - 1
        changed.append(torch.nn.functional.normalize(torch.from_numpy(small.astype(np.float32)), dim=1))
    return Features(*changed)


def measure(checkpoint: Path, loss: str, turned: bool = False) -> list[dict[str, Any]]:
    """A row for each size and form; ``turned``: after a rotation to the principal axes of all training pictures."""
    model = load_model(checkpoint)
    data = model.config.data
    tree = load_tree(data.root, data)
    test = TestSet(tree, tree.validation, data, model.backbone.image_size)
    features = test.embed_model(model, torch.device("cpu"))
    if turned:
        seen = TestSet(tree, tree.seen, data, model.backbone.image_size).embed_model(model, torch.device("cpu"))
        axes = principal_axes(torch.cat([seen.sketches, seen.photos])).float()
        features = Features(features.sketches @ axes, features.photos @ axes)
    D, rows = model.backbone.embed_dim, []
    for size in (*SIZES, D):
        short = features if size == D else features.first(size)
        for form, bits in BITS.items():
            one = kept(short, form)
            result = test.measure(one.sketches, one.photos)
            row = {"loss": loss, "dimensions": size, "form": form, "bytes": size * bits // 8}
            row |= {name: round(value, 5) for name, value in result.query_mean.items()}
            rows.append(row | {"sketches": len(test.sketches), "photos": len(test.photos)})
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True, help="folder that splip data sample made")
    parser.add_argument(
        "--runs", type=Path, required=True, help="folder for the three runs; what is finished is used again"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, as results depend on it)")
    parser.add_argument("--save", metavar="TAG", help="write results/dimensions-TAG.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for loss, sizes in (("plain", ()), ("not turned", SIZES), ("matryoshka", SIZES)):
        config = settings.load(TrainConfig, "sample")
        config.data.root, config.out, config.loss.matryoshka = args.sample, args.runs / loss.replace(" ", "-"), sizes
        config.loss.rotate = loss != "not turned"
        config.resume = in_folder(config.out, LAST).is_file()
        best = train(config)
        rows += measure(best, loss)
        rows += measure(best, "turned", turned=True) if loss == "plain" else []
    if args.save:
        path = RESULTS / f"dimensions-{args.save}.json"
        report = {"benchmark": "dimensions", "machine": machine("cpu"), "sizes": SIZES, "rows": rows}
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
