"""A training step of SpLIP against a straightforward version of the same maths, and where the time goes.

    OMP_WAIT_POLICY=passive python benchmarks/bench_train.py --save cpu

The straightforward version, kept in this file: a text context of 77 tokens, one pass of the model
(both towers) for each of sketch, permuted sketch, positive and negative photo, float32, every weight with a
gradient, images shuffled, normalised and convolved one operation at a time. Both compute the same loss on the same
batch; `error` is the largest relative difference of its terms, `gradient_error` of the gradients.

`splip` steps through `splip.train.objective.Objective`, as `splip train` does. Two versions in between show what
freezing and the short text context bring.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import RESULTS, machine
from torch import Tensor

from splip.data.splits import find_split, prompt_name
from splip.models import SpLIP
from splip.models.config import BackboneConfig, TrainConfig
from splip.ops import reference
from splip.train import losses
from splip.train.objective import Objective
from splip.train.precision import Scaler


class Straightforward:
    """The same maths, written down as the paper says it."""

    def __init__(self, model: SpLIP, everything: bool = True, context: int | None = None) -> None:
        self.model, self.clip = model, model.backbone
        self.context = context or self.clip.text.context_length
        if everything:
            for parameter in model.parameters():
                parameter.requires_grad = True

    def texts(self, modality: str, patch_mean: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        model, clip = self.model, self.clip
        names = [f"{'X ' * model.text_tokens}{modality} of a {name}" for name in model.classes]
        tokens = clip.tokenize(names, truncate=False)[:, : self.context]
        assert model.b_t is not None
        features, hidden = clip.encode_text(tokens, [model.b_t(patch_mean)] * clip.text_layers)
        return F.normalize(features, dim=-1), hidden, tokens

    def encode(self, images: Tensor, modality: str, patch_mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, tokens and class texts of one batch of pictures."""
        model, clip = self.model, self.clip
        texts, hidden, tokens = self.texts(modality, patch_mean)
        words = clip.text.token_embedding(clip.tokenize([f"{modality} of a"])[0, :-1])
        assert model.b_v is not None and model.b_vt is not None
        v_tg = model.b_v(words)
        prompts, eos = [], tokens.argmax(dim=1)
        for layer in range(clip.visual_layers):
            states = hidden[layer * len(hidden) // clip.visual_layers]
            at_eos = torch.stack([states[c, e] for c, e in enumerate(eos)]).mean(dim=0)
            words_of = [states[c, 1 + model.text_tokens : e].mean(dim=0) for c, e in enumerate(eos)]
            prompts.append(torch.cat([v_tg, model.b_vt(at_eos, torch.stack(words_of).mean(dim=0))]))
        features, out = clip.encode_visual_tokens(self.embed(images), prompts)
        return F.normalize(features, dim=-1), out, texts

    def embed(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.clip.mean, self.clip.std))
        return self.clip.embed_patches((images.float() / 255 - mean) / std)

    def __call__(self, images: Tensor, labels: Tensor, _: Tensor, pieces: Tensor) -> dict[str, Tensor]:
        model, B = self.model, len(images) // 3
        assert model.permutations is not None and model.jigsaw is not None
        sketch, positive, negative = images.chunk(3)
        permuted = reference.shuffle_tiles(sketch, model.permutations[pieces[:, 0]], 3)
        means = {"sketch": self.embed(sketch).mean(0), "photo": self.embed(images[B:]).mean(0)}
        s, s_tokens, s_texts = self.encode(sketch, "sketch", means["sketch"])
        _, j_tokens, _ = self.encode(permuted, "sketch", means["sketch"])
        p, p_tokens, p_texts = self.encode(positive, "photo", means["photo"])
        n, n_tokens, n_texts = self.encode(negative, "photo", means["photo"])
        margin = model.class_similarity[labels[:B], labels[2 * B :]]
        scale = self.clip.clip.logit_scale.exp()
        terms = {"triplet": losses.triplet(s, p, n, margin)}
        logits = torch.cat([scale * s @ s_texts.T, scale * p @ p_texts.T, scale * n @ n_texts.T])
        terms["classification"] = F.cross_entropy(logits, labels)
        seen = [model.jigsaw(tokens, j_tokens) for tokens in (s_tokens, p_tokens, n_tokens)]
        terms["jigsaw"] = losses.conditional_jigsaw(seen[0], seen[1], seen[2], pieces[:, 0])
        c = model.config.loss
        loss = c.triplet * terms["triplet"] + c.classification * terms["classification"] + c.jigsaw * terms["jigsaw"]
        return {"loss": loss, **terms}


def build(classes: list[str], name: str) -> SpLIP:
    return SpLIP(TrainConfig(backbone=BackboneConfig(name)), classes).train()


def stepper(
    model: SpLIP,
    objective: Callable[..., dict[str, Tensor]],
    batch: tuple[Tensor, ...],
    scaler: Scaler | None = None,
) -> Callable[[], Any]:
    """Forward, backward and Adam on the parameters that SpLIP trains; ``scaler``: of fp16."""
    scaler = scaler or Scaler("fp32", torch.device("cpu"))
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=0.0, fused=True)

    def step() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        terms = objective(*batch)
        scaler.scale(terms["loss"]).backward()
        scaler.step(optimiser)
        return terms

    return step


def turns(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each candidate; they take turns, the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            spent = (time.perf_counter() - began) * 1e3
            print(f"round {round_}: {spent:9.0f} ms  {name}", flush=True)
            if round_:
                times[name].append(spent)
    return times


def gradients(model: SpLIP, names: list[str]) -> Tensor:
    own = dict(model.named_parameters())
    return torch.cat([own[n].grad.flatten() for n in names if own[n].grad is not None])  # type: ignore[union-attr]


def where(objective: Objective, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Milliseconds of the parts of a step's forward pass, and of its backward pass."""
    model, spent = objective.model, {}
    images, pieces = batch[0], batch[3]
    B = len(images) // 3

    def timed(name: str, run: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        out = run()
        spent[name] = (time.perf_counter() - began) * 1e3
        return out

    modality = (torch.arange(3 * B) >= B).long()
    assert model.permutations is not None and model.jigsaw is not None
    patches = timed("patch embedding", lambda: torch.cat([
        model.backbone.embed_patches(images), model.backbone.embed_patches(images[:B], model.permutations[pieces[:, 0]], 3)
    ]))  # fmt: skip
    mean = model.average(patches[: 3 * B], modality)
    conditions = timed("text tower and prompts", lambda: model.condition_modalities(mean))
    kinds = torch.cat([modality, modality[:B]])
    _, tokens = timed("visual tower", lambda: model.encode(patches, kinds, conditions))
    timed("F_js", lambda: model.jigsaw(tokens[: 3 * B], tokens[3 * B :].repeat(3, 1, 1)))  # type: ignore[misc]
    terms = timed("whole forward pass", lambda: objective(*batch))
    timed("backward pass", lambda: terms["loss"].backward())
    return {name: round(value, 1) for name, value in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", metavar="TAG", help="write results/train-TAG.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    classes = [prompt_name(name) for name in find_split("sketchy", "sketchy-2").seen]
    ours, plain, frozen, short = (build(classes, args.backbone) for _ in range(4))
    B, S = args.batch, ours.backbone.image_size
    objective = Objective(ours)
    labels = torch.randint(0, len(classes), (B,))
    batch = (
        torch.randint(0, 256, (3 * B, 3, S, S), dtype=torch.uint8),
        torch.cat([labels, labels, (labels + 1) % len(classes)]),
        torch.arange(3 * B),
        objective.pieces(B, torch.Generator().manual_seed(0)),
    )
    trained = list(ours.trainable())
    context = ours.tokens.shape[2]
    steps = {
        "splip": stepper(ours, objective, batch),
        "straightforward": stepper(plain, Straightforward(plain), batch),
        "straightforward, frozen weights without gradient": stepper(frozen, Straightforward(frozen, False), batch),
        f"straightforward, frozen weights without gradient, {context} tokens": stepper(
            short, Straightforward(short, False, context), batch
        ),
    }
    times = turns(steps, args.repeats)
    # The rate is 0: the last step's terms and gradients are those of the first.
    a, b = ({name: term.detach() for name, term in o(*batch).items()} for o in (objective, Straightforward(plain)))
    error = max(float(abs(a[name] - b[name]) / abs(b[name])) for name in a)
    theirs = gradients(plain, trained)
    gradient_error = float((gradients(ours, trained) - theirs).norm() / theirs.norm())
    median = {name: statistics.median(values) for name, values in times.items()}
    row = {
        "backbone": args.backbone,
        "batch": B,
        "classes": len(classes),
        "context": {"splip": f"{ours.shared} shared + {context - ours.shared} own", "straightforward": 77},
        "median_ms": median,
        "times_ms": times,
        "ratio": median["straightforward"] / median["splip"],
        "error": error,
        "gradient_error": gradient_error,
        "where_ms": where(objective, batch),
    }
    for name, value in median.items():
        print(f"{value:9.0f} ms  {value / median['splip']:5.2f}x  {name}")
    print(f"largest relative difference of a term {error:.1e}, of the gradients {gradient_error:.1e}")
    print("one step of splip:", "  ".join(f"{name} {ms:.0f} ms" for name, ms in row["where_ms"].items()))
    if args.save:
        path = RESULTS / f"train-{args.save}.json"
        report = {"benchmark": "train", "machine": machine("cpu"), "rows": [row]}
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
