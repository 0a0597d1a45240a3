"""Does a search know when it has no answer: queries of classes that a gallery holds, and of classes that were left out of it.

    splip data sample --out sample
    splip train --config sample --data.root sample --out runs/sample
    python benchmarks/bench_doubt.py --sample sample --trained runs/sample    # a minute on two cores

Galleries hold the photos of half of the classes asked about, and of 6, 12, 40 or 66 of those that models were trained on; twelve
draws of each. Every rule gives a number to the best match of a query; where it falls short of a threshold, the query is called
doubtful. A false alarm is a query of a class that is there and called doubtful, a miss one of a class that is not and is not
called so. Each rule has one threshold for all models and galleries, which calls a fifth of the answerable queries of the
validation classes doubtful; unseen classes are looked at once, with those. Words are another matter: of validation and unseen
classes the packaged models know none, so that thresholds of words are chosen on names of half of the training classes, and
reported on the other half, in galleries without other classes. The probes (see :mod:`splip.gallery.doubt`) are of the training
classes: their words are among those asked, and their drawings among what the trained SpLIP model learned from.
"""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np

DRAWS, AMONG, ALARMS = 12, (6, 12, 40, 66), 0.2
Array = np.ndarray


class Model(NamedTuple):
    """Everything of the sample in one model's vectors, with the class of each."""

    photos: Array
    photo_class: Array
    designer: Array
    sketches: Array
    sketch_class: Array
    words: Array
    word_class: Array
    probes: dict[str, Array]


def embed(name: str, sample: Path) -> Model:
    from splip import images
    from splip.data.sample import FOLDER
    from splip.encoders import Encoder
    from splip.gallery import doubt

    encoder = Encoder.load(name, device="cpu")

    def all_of(kind: str) -> tuple[list[Path], Array]:
        paths = sorted((sample / kind).rglob("*.png"))
        return paths, encoder.encode(np.stack([encoder.prepare(images.read(p), kind) for p in paths]), kind)

    drawn, sketches = all_of("sketch")
    clean = np.array([path.stem.endswith("-1") for path in drawn])
    seen, photos = all_of("photo")
    with open(FOLDER / "index.csv", newline="", encoding="utf-8") as file:
        things = list(csv.DictReader(file))
    return Model(
        photos,
        np.array([path.parent.name for path in seen]),
        np.array([path.stem.rsplit("-", 1)[1] for path in seen]),
        sketches[clean],
        np.array([path.parent.name for path in drawn])[clean],
        encoder.encode_text([thing["name"] for thing in things]),
        np.array([thing["class"] for thing in things]),
        doubt.encoded(encoder),
    )


def rules(kind: str, queries: Array, photos: Array, probes: dict[str, Array]) -> dict[str, Array]:
    """What each rule makes of the best match of each query; the larger, the surer."""
    from splip.gallery import doubt

    scores, N = queries @ photos.T, len(photos)
    top, expected = scores.max(axis=1), math.sqrt(2 * math.log(N))
    middle = np.median(scores, axis=1)
    ordered = np.sort(scores, axis=1)[:, ::-1]
    found = {
        "score": top,
        "z of the query's scores": (top - scores.mean(axis=1)) / scores.std(axis=1),
        "the same, by N": (top - scores.mean(axis=1)) / scores.std(axis=1) / expected,
        "robust z, by N": (top - middle) / np.median(np.abs(scores - middle[:, None]), axis=1) / expected,
        "lead over the tenth": ordered[:, 0] - ordered[:, 9],
    }
    own = doubt.measure(photos, probes)
    if kind != "photo":
        best = (probes[kind] @ photos.T).max(axis=1)
        spread = 1.4826 * np.median(np.abs(best - np.median(best)))
        found["best scores of unrelated queries"] = (top - np.median(best)) / spread
        found["photos' bulk"] = _share(own["photo"], top, N)
        seen_by = probes[kind] @ photos[scores.argmax(axis=1)].T
        found["z of the photo's scores"] = (top - seen_by.mean(axis=0)) / seen_by.std(axis=0)
    found["bulk (splip)"] = _share(own[kind], top, N)
    return found


def _share(bulk: Any, top: Array, N: int) -> Array:
    """How far on the way from the middle to the best of N."""
    found: Array = (top - bulk.middle) / (bulk.cutoff(N, 1.0) - bulk.middle)
    return found


def galleries(kind: str, model: Model, asked: list[str], others: list[str]) -> list[tuple[dict[str, Array], Array]]:
    """Rules and which queries can be answered, of each gallery."""
    found = []
    for among in AMONG if kind != "text" else (0,):
        for draw in range(DRAWS):
            random = np.random.default_rng(draw)
            there = set(random.permutation(asked)[: len(asked) // 2])
            held = np.isin(model.photo_class, [*there, *random.permutation(others)[:among]])
            if kind == "photo":  # by another designer than those whose photos are held
                held &= model.designer != "noto"
                chosen = np.isin(model.photo_class, asked) & (model.designer == "noto")
                queries, classes = model.photos[chosen], model.photo_class[chosen]
            elif kind == "sketch":
                chosen = np.isin(model.sketch_class, asked)
                queries, classes = model.sketches[chosen], model.sketch_class[chosen]
            else:
                chosen = np.isin(model.word_class, asked)
                queries, classes = model.words[chosen], model.word_class[chosen]
            found.append((rules(kind, queries, model.photos[held], model.probes), np.isin(classes, list(there))))
    return found


def auc(there: Array, missing: Array) -> float:
    """How often a query that can be answered comes before one that cannot."""
    ranks = np.argsort(np.argsort(np.concatenate([there, missing]))) + 1.0
    n, m = len(there), len(missing)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / n / m)


def table(by_model: dict[str, list[Any]], thresholds: dict[str, float] | None) -> dict[str, Any]:
    """Of each rule its threshold, and of each model the AUC, the false alarms and the misses; means over galleries."""
    out: dict[str, Any] = {}
    first = next(iter(by_model.values()))[0][0]
    for rule in first:
        every = np.concatenate([values[rule][there] for made in by_model.values() for values, there in made])
        threshold = float(np.quantile(every, ALARMS)) if thresholds is None else thresholds[rule]
        out[rule] = {"threshold": round(threshold, 4), "models": {}}
        for name, made in by_model.items():
            rows = np.array(
                [
                    (auc(v[rule][t], v[rule][~t]), (v[rule][t] < threshold).mean(), (v[rule][~t] >= threshold).mean())
                    for v, t in made
                ]
            )
            worst = rows.reshape(-1, DRAWS, 3).mean(axis=1)
            out[rule]["models"][name] = {
                "auc": round(float(rows[:, 0].mean()), 3),
                "false_alarms": round(float(rows[:, 1].mean()), 3),
                "misses": round(float(rows[:, 2].mean()), 3),
                "false_alarms_by_gallery": [round(float(v), 3) for v in worst[:, 1]],
            }
    return out


def measure(models: dict[str, Model], sample: Path) -> dict[str, Any]:
    from splip.gallery import doubt

    facts = json.loads((sample / "dataset.json").read_text(encoding="utf-8"))
    trained = sorted(set(facts["seen"]) - set(facts["validation"]))
    mixed = [str(name) for name in np.random.default_rng(1).permutation(trained)]
    halves = sorted(mixed[: len(mixed) // 2]), sorted(mixed[len(mixed) // 2 :])
    out: dict[str, Any] = {}
    for kind in ("sketch", "photo", "text"):
        sets = (halves[0], halves[1]) if kind == "text" else (facts["validation"], facts["unseen"])
        chosen = table({n: galleries(kind, m, sorted(sets[0]), trained) for n, m in models.items()}, None)
        thresholds = {rule: row["threshold"] for rule, row in chosen.items()}
        thresholds["bulk (splip)"] = doubt.FACTORS[kind]  # rounded
        reported = table({n: galleries(kind, m, sorted(sets[1]), trained) for n, m in models.items()}, thresholds)
        out[kind] = {"chosen": chosen, "reported": reported}
        if kind == "text":
            unknown = {n: galleries(kind, m, sorted(facts["unseen"]), trained) for n, m in models.items()}
            out["unknown words"] = {"reported": table(unknown, thresholds)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, required=True)
    parser.add_argument("--trained", type=Path, help="a run of `splip train --config sample`")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "doubt.json")
    args = parser.parse_args()
    models = {name: embed(f"open_clip:{name}", args.sample) for name in ("splip-tiny", "splip-tiny-3")}
    if args.trained:
        models["SpLIP, trained on the sample"] = embed(str(args.trained), args.sample)
    found = measure(models, args.sample)
    from splip.gallery import doubt

    document = {"factors": doubt.FACTORS, "draws": DRAWS, "among": AMONG, "results": found}
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for kind, parts in found.items():
        for part, rows in parts.items():
            print(f"\n{kind}, {part}: AUC, false alarms, misses of {', '.join(models)}")
            for rule, row in rows.items():
                cells = "  ".join(
                    f"{r['auc']:.3f} {r['false_alarms']:.2f} {r['misses']:.2f}" for r in row["models"].values()
                )
                print(f"{rule:34s} {row['threshold']:8.3f}  {cells}")


if __name__ == "__main__":
    main()
