"""Worlds in which theory says what an encoder must know: do prompts do what only prompts can do?

    python benchmarks/worlds.py             # both worlds, all methods: a quarter of an hour on one core
    python benchmarks/worlds.py --steps 60 --methods splip clip-ln

**Two objects.** Every picture holds two things side by side. As a sketch it is of the left one, as a photo of the right
one; the pixels are drawn alike. To a query x, a photo y is *right* if x's left thing is y's right one, and *mirrored* if
x's right thing is y's left one. An encoder that is blind to the modality has one feature for a picture, so its scores are
symmetric: s(x, y) = s(y, x). y is right for x exactly when x is mirrored for y. With the same pictures as queries and as
gallery, right and mirrored pairs therefore have the *same* scores, and the chance that a right one is above a mirrored one
(AUC) is one half, to the last digit, whatever was trained. Above it is what the modality alone gives.

**Planted teacher.** The same frozen tower with a teacher's prompts: classes are clusters of its features. Without the prompts
most of its mAP is gone. A student with other random numbers, which is told the classes alone, must find prompts that do
as well, on clusters that it never saw.

The tower is a small ViT of random weights, frozen. Its positions and its attention are made stronger than a start from
random numbers is, as training makes them: else no class token could tell left from right.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from splip.config import from_dict, merge, read
from splip.models import Retriever, build
from splip.models.config import TrainConfig
from splip.train.objective import Objective

SIDE, PATCH = 64, 32
SEEN, UNSEEN = 40, 20  # classes
POSITIONS, ATTENTION = 6.0, 2.0  # how much stronger than random ones
NOISE = 25.0  # standard deviation, of 255
OWN, SWAPPED, REMOVED = (0, 1), (1, 0), (None, None)
# row: (configuration, changes)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip-ln": ("clip-ln", {}),
    "maple": ("maple", {}),
    "clip-at": ("clip-at", {}),
    "splip": ("ablations/full", {"train_layernorm": False, "train_text_layernorm": False}),
    "splip with LayerNorms": ("ablations/full", {}),
    "splip as before": ("ablations/as-before", {"train_layernorm": False, "train_text_layernorm": False}),
    "splip without prompts": ("ablations/no-prompts", {}),
}


@dataclass
class Sight:
    """Pictures ``[N, 3, S, S]`` uint8 and what each is, as a sketch and as a photo: classes ``[N]``."""

    images: Tensor
    sketch: Tensor
    photo: Tensor


def tower(folder: Path, layers: int = 3, width: int = 96) -> str:
    """The name of a small open_clip architecture."""
    name = f"world-{layers}-{width}"
    vision = {"image_size": SIDE, "layers": layers, "width": width, "head_width": 32, "patch_size": PATCH}
    words = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": layers}
    text = json.dumps({"embed_dim": width, "vision_cfg": vision, "text_cfg": words})
    (folder / f"{name}.json").write_text(text)
    open_clip.add_model_config(folder)
    return name


def make(row: str, name: str, classes: int, seed: int) -> Retriever:
    """A model of one of the rows, its tower sharpened and frozen."""
    overlay, changes = ROWS[row]
    shared = {
        "backbone": {"name": name, "pretrained": "random"},
        "loss": {
            "jigsaw": 0.0,
            "divergence": 0.0,
            "classification": 0.1,
            "logit_scale": 14.0,
            "negatives": "semi-hard",
            "margin": "fixed",
        },
        "seed": seed,
    }
    values = merge(merge(merge(read(overlay), shared), changes), {"accumulate": 1})
    model = build(from_dict(TrainConfig, values, row), [f"thing {i}" for i in range(classes)])
    visual = model.backbone.visual
    with torch.no_grad():
        visual.positional_embedding *= POSITIONS
        for block in visual.transformer.resblocks:
            block.attn.in_proj_weight[: 2 * visual.conv1.out_channels] *= ATTENTION
    return model


# ---- the two worlds ----


class TwoObjects:
    """Two patterns side by side; a class is a pattern. The first classes are seen, the others are not."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        small = torch.rand(SEEN + UNSEEN, 3, 4, 2, generator=self.generator) * 255
        self.patterns = F.interpolate(small, (SIDE, SIDE // 2), mode="bicubic").clamp(0, 255)

    def draw(self, left: Tensor, right: Tensor) -> Tensor:
        pixels = torch.cat([self.patterns[left], self.patterns[right]], dim=3)
        noise = NOISE * torch.randn(pixels.shape, generator=self.generator)
        return (pixels + noise).clamp(0, 255).round().to(torch.uint8)

    def other(self, than: Tensor, count: int) -> Tensor:
        """Another class of the first ``count`` for each."""
        return (than + torch.randint(1, count, than.shape, generator=self.generator)) % count

    def batch(self, B: int) -> tuple[Tensor, Tensor]:
        """B sketches, B photos of their classes, B of other classes; and the classes of all."""
        own = torch.randint(SEEN, (B,), generator=self.generator)
        negative = self.other(own, SEEN)
        images = [
            self.draw(own, self.other(own, SEEN)),
            self.draw(self.other(own, SEEN), own),
            self.draw(self.other(negative, SEEN), negative),
        ]
        return torch.cat(images), torch.cat([own, own, negative])

    def test(self, count: int) -> Sight:
        """Pictures of unseen classes."""
        left = torch.randint(UNSEEN, (count,), generator=self.generator)
        right = self.other(left, UNSEEN)
        return Sight(self.draw(SEEN + left, SEEN + right), SEEN + left, SEEN + right)


class Planted:
    """Pictures whose classes are clusters of a teacher's features."""

    def __init__(self, teacher: Retriever, seed: int, count: int = 6000) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        things = TwoObjects(seed + 1)
        left = torch.randint(SEEN + UNSEEN, (count,), generator=self.generator)
        images = things.draw(left, things.other(left, SEEN + UNSEEN))
        features = [_encode(teacher, images, modality, modality) for modality in (0, 1)]
        features = [F.normalize(f - f.mean(dim=0), dim=1) for f in features]  # what all pictures share is no class
        classes = _clusters(torch.cat(features), SEEN + UNSEEN, self.generator).split(count)
        self.all = Sight(images, *classes)

    def batch(self, B: int) -> tuple[Tensor, Tensor]:
        """B sketches, B photos of their classes, B of other classes; and the classes of all."""
        own, rows = [], []
        while len(own) < B:
            label = int(torch.randint(SEEN, (1,), generator=self.generator))
            other = (label + int(torch.randint(1, SEEN, (1,), generator=self.generator))) % SEEN
            pools = [self.all.sketch == label, self.all.photo == label, self.all.photo == other]
            found = [torch.nonzero(pool).flatten() for pool in pools]
            if all(map(len, found)):
                own.append((label, label, other))
                rows.append([int(f[int(torch.randint(len(f), (1,), generator=self.generator))]) for f in found])
        order = torch.tensor(rows).T.flatten()
        return self.all.images[order], torch.tensor(own).T.flatten()

    def test(self, count: int) -> Sight:
        """Pictures that are of an unseen class both as a sketch and as a photo."""
        rows = torch.nonzero((self.all.sketch >= SEEN) & (self.all.photo >= SEEN)).flatten()[:count]
        return Sight(self.all.images[rows], self.all.sketch[rows], self.all.photo[rows])


def plant(name: str, seed: int, steps: int, lr: float) -> Retriever:
    """A teacher whose prompts matter: it learned to tell left from right on other patterns."""
    teacher = make("splip", name, SEEN, seed)
    train(teacher, TwoObjects(seed + 1000).batch, steps, lr)
    return teacher


def _clusters(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Which of ``count`` clusters each row ``[N, D]`` of unit length is in: k-means by cosine.

    Each first centre is the row that is furthest from those before, of 200 at random.
    """
    some = features[torch.randperm(len(features), generator=generator)[: 200 * count]].split(200)
    chosen = [some[0][0]]
    for rows in some[1:count]:
        chosen.append(rows[(rows @ torch.stack(chosen).T).amax(dim=1).argmin()])
    centres = torch.stack(chosen)
    for _ in range(20):
        nearest = (features @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        centres = F.normalize(torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, centres), dim=1)
    return (features @ centres.T).argmax(dim=1)


# ---- training and measuring ----


def train(model: Retriever, batch: Callable[[int], tuple[Tensor, Tensor]], steps: int, lr: float, B: int = 32) -> None:
    """The package's objective by Adam, its rate falling to 0."""
    objective = Objective(model.train())
    trained = list(model.trainable().values())
    if not trained:
        return
    model.start(batch(B)[0])
    optimiser = torch.optim.Adam(trained, lr=lr)
    for step in range(steps):
        images, labels = batch(B)
        pieces = torch.zeros(B, 2, dtype=torch.int64)  # no jigsaw: it would move left to right
        loss = objective(images, labels, torch.arange(3 * B), pieces)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimiser.step()
    model.eval()


def measure(model: Retriever, test: Sight, of: tuple[int | None, int | None] = OWN) -> dict[str, float]:
    """AUC of right above mirrored pairs, and mAP of all sketches among all photos but themselves; percent.

    Args:
        of: whose prompts sketches and photos get.
    """
    sketches, photos = (_encode(model, test.images, modality, of[modality]) for modality in (0, 1))
    return scored(sketches @ photos.T, test)


def scored(scores: Tensor, test: Sight) -> dict[str, float]:
    """The same of any scores ``[N, N]``, sketches by photos."""
    itself = torch.eye(len(scores), dtype=torch.bool)
    right, mirrored = (test.sketch[:, None] == test.photo) & ~itself, (test.photo[:, None] == test.sketch) & ~itself
    good, bad = scores[right & ~mirrored], scores[mirrored & ~right]
    ranked = right.gather(1, scores.masked_fill(itself, -torch.inf).argsort(dim=1, descending=True))[:, :-1].double()
    precision = ranked.cumsum(dim=1) / torch.arange(1, ranked.shape[1] + 1)
    found = ranked.sum(dim=1)
    ap = ((precision * ranked).sum(dim=1) / found.clamp(min=1))[found > 0]
    return {"AUC": 100 * _auc(good, bad), "mAP": 100 * float(ap.mean())}


def _auc(good: Tensor, bad: Tensor) -> float:
    """The chance that one of ``good`` is larger than one of ``bad``; equal ones count half."""
    bad = bad.sort().values
    below, upto = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + upto).double().mean()) / (2 * len(bad))


def both_objects(test: Sight) -> Tensor:
    """Scores of a blind ranker that knows both things of every picture: those that they share, wherever."""
    left, right = test.sketch, test.photo
    pairs = ((left, left), (left, right), (right, left), (right, right))
    total = sum((a[:, None] == b).float() for a, b in pairs)
    assert isinstance(total, Tensor)
    noise = torch.rand(total.shape, generator=torch.Generator().manual_seed(0))
    return total + 1e-3 * (noise + noise.T)  # ties in a symmetric random order


@torch.no_grad()
def _encode(model: Retriever, images: Tensor, modality: int, of: int | None) -> Tensor:
    return torch.cat([model.encode_image(part, modality, of) for part in images.split(256)])


def run(row: str, name: str, world: Any, test: Sight, steps: int, lr: float, seed: int) -> dict[str, Any]:
    """A row: trained, and measured with its own prompts, swapped ones and none."""
    began = time.monotonic()
    model = make(row, name, SEEN, seed)
    train(model, world.batch, steps, lr)
    found = {key: measure(model, test, of) for key, of in (("own", OWN), ("swapped", SWAPPED), ("removed", REMOVED))}
    result = {"row": row, "seed": seed, **found, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of 32 sketches (default: 200)")
    parser.add_argument("--lr", type=float, default=1e-2, help="(default: 1e-2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS), help="rows (default: all)")
    parser.add_argument("--pictures", type=int, default=600, help="of the test (default: 600)")
    parser.add_argument("--save", default="worlds", help="name of the JSON in benchmarks/results (default: worlds)")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": harness.machine("cpu"),
        "settings": vars(args),
        "two_objects": [],
        "planted": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        name = tower(Path(folder))
        for seed in args.seeds:
            world = TwoObjects(seed)
            test = world.test(args.pictures)
            bag = scored(both_objects(test), test)
            report["two_objects"].append({"row": "both things known, blind", "seed": seed, "own": bag})
            for row in args.methods:
                report["two_objects"].append(run(row, name, world, test, args.steps, args.lr, seed))
            teacher = plant(name, seed, args.steps, args.lr)
            planted = Planted(teacher, seed)
            test = planted.test(args.pictures)
            taught = {"own": measure(teacher, test), "removed": measure(teacher, test, REMOVED)}
            report["planted"].append({"row": "teacher", "seed": seed, **taught})
            print(json.dumps(report["planted"][-1]), flush=True)
            for row in args.methods:
                report["planted"].append(run(row, name, planted, test, args.steps, args.lr, seed + 100))
    path = harness.RESULTS / f"{args.save}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
