"""The whole objective and its gradients, against an implementation that shares no line with it.

Where the paper leaves something open (docs/paper.md), both follow the same reading of it; the definitions of the ops
stand in for their kernels, which have tests of their own.
"""

import copy
import json

import open_clip
import oracle
import pytest
import torch

from splip import ops
from splip.models import build
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.ops import reference
from splip.train.objective import Objective

B, SIDE = 4, 51  # 3 x 3 patches of 17 pixels
CLASSES = ["dog", "palm tree", "cup", "fire extinguisher", "bee"]  # of one word and of two
LABELS = {"category": [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2], "fine-grained": [0, 1, 2, 4] * 3}


def architecture(folder, visual, text):
    """An open_clip model as small as can be, with towers of these depths."""
    name = f"oracle-{visual}-{text}"
    vision = {"image_size": SIDE, "layers": visual, "width": 64, "head_width": 32, "patch_size": 17}
    words = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": text}
    (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 48, "vision_cfg": vision, "text_cfg": words}))
    open_clip.add_model_config(folder)
    return name


@pytest.fixture
def doubles(monkeypatch):
    """Everything in float64: new tensors, what asks for float32, and the definitions instead of the kernels."""
    as_float = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else as_float(t).double())
    for name in ("prompt_layernorm", "patchify"):
        monkeypatch.setattr(ops, name, getattr(reference, name))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def disturb(model):
    """New models have LayerNorms that do nothing, and maps whose tokens hardly matter: as if it had learned."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.trainable().items():
        spread = 0.02 if name == "b_t.project.weight" else 0.2
        with torch.no_grad():
            parameter += spread * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("setting", LABELS)
@pytest.mark.parametrize("conditioning", ["modality", "instance"])
@pytest.mark.parametrize("depths", [(2, 3), (3, 2)], ids=str)
def test_every_term_and_gradient(tmp_path, doubles, depths, conditioning, setting):
    name = architecture(tmp_path, *depths)
    # Sizes of the features besides all 48 components; naming those changes nothing.
    some = (8, 17) if setting == "category" else (8, 17, 48)
    kinds = [("adaptive", ()), ("fixed", some)]
    if conditioning == "instance":
        kinds = [("adaptive", ())] if depths == (2, 3) else [("adaptive", some)]
    for margin, sizes in kinds:
        config = TrainConfig(
            setting=setting,
            backbone=BackboneConfig(name=name, pretrained="random"),
            prompts=PromptConfig(conditioning=conditioning),
            loss=LossConfig(margin=margin, matryoshka=sizes, permutations=10, jigsaw_width=64),
        )
        model = build(config, CLASSES).double().train()
        tokenizer = open_clip.get_tokenizer(name)
        similarity = oracle.similarities(copy.deepcopy(model.backbone.clip), tokenizer, CLASSES)
        # Some margins are at the floor, others above it.
        floor = (
            sorted(float(similarity[LABELS["category"][i]][LABELS["category"][2 * B + i]]) for i in range(B))[1] + 1e-4
        )
        model.config.loss.margin_floor = floor
        disturb(model)
        clip = copy.deepcopy(model.backbone.clip)
        weights = {
            name: p.detach().clone().requires_grad_()
            for name, p in model.named_parameters()
            if not name.startswith("backbone.")
        }
        towers = oracle.Towers(clip, tokenizer, weights, 4, "{modality} of a")

        generator = torch.Generator().manual_seed(3)
        images = torch.randint(0, 256, (3 * B, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        labels, objective = LABELS[setting], Objective(model)
        pieces = objective.pieces(B, generator)
        got = objective(images, torch.tensor(labels), torch.arange(3 * B), pieces)
        want = oracle.losses(
            towers,
            images.double() / 255,
            labels,
            model.permutations.tolist(),
            pieces[:, 0].tolist(),
            similarity,
            CLASSES,
            conditioning == "instance",
            0.2 if margin == "fixed" else None,
            floor,
            tuple(size for size in sizes if size < 48),
        )
        assert set(got) == set(want)
        for term, value in want.items():
            assert value > 1e-3, f"{term} says nothing here"
            assert got[term].dtype == torch.float64
            torch.testing.assert_close(got[term], value, rtol=1e-8, atol=1e-8, msg=lambda m: f"{term}: {m}")
        learned = {f"backbone.clip.{n}": p for n, p in clip.named_parameters() if p.requires_grad} | weights
        assert set(learned) == set(model.trainable())
        for term in want:
            ours, theirs = (
                torch.autograd.grad(terms[term], list(tensors.values()), retain_graph=True, allow_unused=True)
                for terms, tensors in ((got, model.trainable()), (want, {n: learned[n] for n in model.trainable()}))
            )
            assert max(float(g.abs().max()) for g in theirs if g is not None) > 1e-3
            for which, a, b in zip(model.trainable(), ours, theirs, strict=True):
                a, b = (torch.zeros(()) if g is None else g for g in (a, b))
                a, b = torch.broadcast_tensors(a, b)
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda m: f"d {term} / d {which}: {m}")
