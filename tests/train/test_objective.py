import copy

import pytest
import torch

from splip.errors import UserError
from splip.models import build
from splip.models.config import BackboneConfig, LossConfig, PromptConfig, TrainConfig
from splip.train import losses, terms
from splip.train.objective import Objective

CLASSES = ["dog", "palm tree", "cup"]
LABELS = torch.tensor([0, 1, 2, 0] + [0, 1, 2, 0] + [1, 2, 0, 2])


def make(**changes):
    return Objective(build(TrainConfig(backbone=BackboneConfig(name="splip-tiny"), **changes), CLASSES))


def batch(objective, things=None):
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    pieces = objective.pieces(4, torch.Generator().manual_seed(1))
    return images, LABELS, torch.arange(12) if things is None else things, pieces


def test_pieces():
    objective = make()
    pieces = objective.pieces(500, torch.Generator().manual_seed(0))
    assert (pieces[:, 0] != pieces[:, 1]).all() and pieces.min() == 0 and pieces.max() == 99


def test_every_term_by_hand():
    """One pass of both towers gives what separate passes of sketch, pieces, positive and negative give."""
    objective = make()
    model = objective.model
    images, labels, things, pieces = batch(objective)
    terms = objective(images, labels, things, pieces)
    model.eval()  # the averages of one step are the constants of inference
    backbone = model.backbone
    with torch.no_grad():
        sketch, positive, negative = (
            model.encode_image(part, kind) for part, kind in zip(images.chunk(3), (0, 1, 1), strict=True)
        )
        margin = model.class_similarity[labels[:4], labels[8:]].clamp(min=model.config.loss.margin_floor)
        torch.testing.assert_close(terms["triplet"], losses.triplet(sketch, positive, negative, margin))
        features, modality = torch.cat([sketch, positive, negative]), torch.tensor([0] * 4 + [1] * 8)
        scale = backbone.clip.logit_scale.exp()
        want = losses.classification(features, model.constants().texts, labels, modality, scale)
        torch.testing.assert_close(terms["classification"], want)

        def tokens(part, kind, permutation=None):
            patches = backbone.embed_patches(part, permutation)
            return backbone.encode_visual_tokens(patches, model.visual_prompts()[kind])[1]

        shuffled = tokens(images[:4], 0, model.permutations[pieces[:, 0]])
        logits = [model.jigsaw(tokens(p, k), shuffled) for p, k in zip(images.chunk(3), (0, 1, 1), strict=True)]
        torch.testing.assert_close(terms["jigsaw"], losses.conditional_jigsaw(*logits, pieces[:, 0]))
        total = terms["triplet"] + terms["classification"] + 0.1 * terms["jigsaw"]
        torch.testing.assert_close(terms["loss"], total)


@pytest.mark.parametrize("term", ["triplet", "classification", "jigsaw"])
def test_terms_can_be_switched_off(term):
    objective = make(loss=LossConfig(**{term: 0.0}))
    terms = objective(*batch(objective))
    assert set(terms) == {"loss", "triplet", "classification", "jigsaw"} - {term}
    assert terms["loss"].requires_grad


def test_permuted_triplet():
    """The sketch's pieces against the positive's, cut alike and cut otherwise."""
    objective = make(loss=LossConfig(jigsaw_form="permuted-triplet", jigsaw=1.0), method="clip-ln")
    images, labels, things, pieces = batch(objective)
    terms = objective(images, labels, things, pieces)
    backbone, bank = objective.model.backbone, objective.model.permutations

    def features(part, which):
        patches = backbone.embed_patches(part, bank[pieces[:, which]])
        return torch.nn.functional.normalize(backbone.encode_visual(patches), dim=-1)

    sketch, positive, _ = images.chunk(3)
    want = losses.permuted_triplet(features(sketch, 0), features(positive, 0), features(positive, 1), 0.2)
    torch.testing.assert_close(terms["jigsaw"], want)
    assert objective.model.jigsaw is None


def test_fine_grained_margin_is_one():
    """A negative of the same class is as like as can be: cos = 1."""
    objective = make(setting="fine-grained", loss=LossConfig(classification=0, jigsaw=0))
    images, _, things, pieces = batch(objective)
    labels = LABELS[:4].repeat(3)
    terms = objective(images, labels, things, pieces)
    objective.model.eval()
    features = [objective.model.encode_image(p, k) for p, k in zip(images.chunk(3), (0, 1, 1), strict=True)]
    torch.testing.assert_close(terms["triplet"], losses.triplet(*features, 1.0))


@pytest.mark.parametrize("setting", ["category", "fine-grained"])
def test_semi_hard_negatives(setting):
    objective = make(setting=setting, loss=LossConfig(negatives="semi-hard", classification=0, jigsaw=1.0))
    things = torch.tensor([0, 1, 2, 3] + [0, 1, 2, 3] + [4, 5, 6, 7])
    images, labels, things, pieces = batch(objective, things)
    terms = objective(images, labels, things, pieces)
    model, got = objective.model.eval(), float(terms["triplet"].detach())
    sketch, positive, drawn = (model.encode_image(p, k) for p, k in zip(images.chunk(3), (0, 1, 1), strict=True))
    photos = torch.cat([positive, drawn])
    total = 0.0
    for i in range(4):
        near = float((sketch[i] - positive[i]).square().sum())
        far = [(float((sketch[i] - photo).square().sum()), j) for j, photo in enumerate(photos)]
        other = [LABELS[4 + j] != LABELS[i] for j in range(8)]
        if setting == "fine-grained":
            other = [not o and things[4 + j] != things[i] for j, o in enumerate(other)]
        pick = min([(d, j) for d, j in far if other[j] and d > near], default=(far[4 + i][0], 4 + i))
        margin = float(model.class_similarity[LABELS[i], LABELS[4 + pick[1]]])
        total += max(0.0, near - pick[0] + max(margin, model.config.loss.margin_floor))
    assert got == pytest.approx(total / 4, abs=1e-4)


def test_jigsaw_with_mined_negatives_by_hand():
    """The negative of L_cjs is the photo that was mined, not the one that was drawn."""
    objective = make(loss=LossConfig(negatives="semi-hard", classification=0, jigsaw=1.0))
    images, labels, things, pieces = batch(objective)
    terms = objective(images, labels, things, pieces)
    model = objective.model.eval()
    backbone, prompts = model.backbone, model.visual_prompts()
    with torch.no_grad():
        features = [model.encode_image(p, k) for p, k in zip(images.chunk(3), (0, 1, 1), strict=True)]
        photos, kinds = torch.cat(features[1:]), labels[4:]
        chosen = []
        for i in range(4):
            far = (photos - features[0][i]).square().sum(dim=1)
            right = [j for j in range(8) if kinds[j] != labels[i] and far[j] > far[i]]
            chosen.append(min(right, key=lambda j: float(far[j]), default=4 + i))
        assert chosen != [4, 5, 6, 7]  # or the drawn ones would do

        def tokens(part, kind, permutation=None):
            return backbone.encode_visual_tokens(backbone.embed_patches(part, permutation), prompts[kind])[1]

        whole, pictures = tokens(images[:4], 0), tokens(images[4:], 1)
        shuffled = tokens(images[:4], 0, model.permutations[pieces[:, 0]])
        logits = [model.jigsaw(t, shuffled) for t in (whole, pictures[:4], pictures[chosen])]
        want = losses.conditional_jigsaw(*logits, pieces[:, 0])
        drawn = losses.conditional_jigsaw(*logits[:2], model.jigsaw(pictures[4:], shuffled), pieces[:, 0])
    torch.testing.assert_close(terms["jigsaw"], want, rtol=0, atol=1e-5)
    assert abs(float(want - drawn)) > 1e-4


def test_parts_with_the_average_of_the_whole():
    """Gradients of two halves, given the whole batch's average, are those of the whole batch.

    But for what makes the patch embeddings, which the given average does not lead back to.
    """
    whole, halves = make(), make()
    images, labels, things, pieces = batch(whole)
    whole(images, labels, things, pieces)["loss"].backward()
    mean = halves.average(images)
    for rows in (torch.tensor([0, 2]), torch.tensor([1, 3])):
        triplets = torch.cat([rows, rows + 4, rows + 8])
        terms = halves(images[triplets], labels[triplets], things[triplets], pieces[rows], mean)
        (terms["loss"] / 2).backward()
    for (name, a), b in zip(whole.model.trainable().items(), halves.model.trainable().values(), strict=True):
        if ".conv1." in name:
            continue
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}", rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(whole.model.patch_mean, halves.model.patch_mean)


@pytest.mark.parametrize(
    "changes",
    [{}, {"prompts": PromptConfig(conditioning="instance")}, {"method": "maple"}, {"train_backbone": True}],
    ids=str,
)
def test_bfloat16(changes):
    """Close to float32 in value and direction; weights, gradients and losses stay float32."""
    wide = make(**changes)
    narrow = Objective(copy.deepcopy(wide.model))
    narrow.model.config = copy.deepcopy(narrow.model.config)
    narrow.model.config.precision = "bf16"
    args = batch(wide)
    a, b = wide(*args), narrow(*args)
    for name in a:
        assert b[name].dtype == torch.float32
        torch.testing.assert_close(a[name], b[name], rtol=0.1, atol=0.1)
    a["loss"].backward()
    b["loss"].backward()
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in o.model.trainable().values() if p.grad is not None])
        for o in (wide, narrow)
    )
    assert theirs.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.9


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            LossConfig(margin="wide"),
            "loss.margin: there is no 'wide', only adaptive, fixed; --plugin FILE.py adds others",
        ),
        (LossConfig(negatives="easy"), "loss.negatives: there is no 'easy', only random, semi-hard"),
        (LossConfig(jigsaw_form="round"), "loss.jigsaw_form: there is no 'round', only conditional, permuted-triplet"),
        (LossConfig(terms={"tight": 0.1}), "loss.terms: there is no 'tight', only triplet, classification, jigsaw"),
        (LossConfig(terms={"triplet": 0.1}), "loss.terms: the weight of triplet is loss.triplet"),
        (LossConfig(terms={"stop": 0.1}), "loss.terms: stop is another column of log.csv"),
        (LossConfig(terms={"tight": -1.0}), "loss.terms.tight must not be negative, got -1.0"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_names_that_nobody_registered(loss, message):
    with pytest.raises(UserError) as caught:
        make(loss=loss)
    assert str(caught.value).startswith(message)


def test_a_term_of_another_name(plugged):
    """Computed beside the others, and weighted by its name."""

    @terms.register_term("short")
    def short(batch):
        assert batch.size == 4 and batch.other.tolist() == LABELS[8:].tolist()
        return batch.negative.sum() * 0 + 3

    objective = make(loss=LossConfig(classification=0, jigsaw=0, terms={"short": 0.5}))
    found = objective(*batch(objective))
    assert list(found) == ["loss", "triplet", "short"]
    torch.testing.assert_close(found["loss"], found["triplet"] + 1.5)


def test_a_term_must_be_a_scalar(plugged):
    terms.register_term("rows")(lambda batch: batch.sketch.sum(dim=1))
    objective = make(loss=LossConfig(jigsaw=0, terms={"rows": 1.0}))
    with pytest.raises(ValueError, match=r"the term rows gives \[4\], not a scalar"):
        objective(*batch(objective))


def test_a_form_of_the_jigsaw(plugged):
    """It says which pictures are shuffled, whether F_js is trained, and what they are asked."""

    @terms.register_jigsaw("photos", head=True)
    class Photos(terms.JigsawForm):
        @staticmethod
        def shuffle(images, first, second):
            return images[len(first) : 2 * len(first)], second, torch.ones(len(first), dtype=torch.int64)

        @staticmethod
        def loss(batch):
            pieces = batch.tokens[3 * batch.size :]
            logits = batch.model.jigsaw(batch.tokens[: batch.size], pieces)
            return torch.nn.functional.cross_entropy(logits, batch.pieces[:, 1])

    objective = make(loss=LossConfig(jigsaw_form="photos"), method="clip-ln")
    terms_ = objective(*batch(objective))
    terms_["jigsaw"].backward()
    assert all(p.grad is not None for p in objective.model.jigsaw.parameters())


def test_matryoshka_is_the_mean_over_sizes():
    """Of a term on features, the permuted triplet too; what reads tokens is the same, and all components are plain."""
    sizes = (16, 64, 256)
    for form in ("permuted-triplet", "conditional"):
        loss = LossConfig(jigsaw_form=form, jigsaw=1.0, margin="fixed", matryoshka=sizes)
        plain = make(loss=LossConfig(jigsaw_form=form, jigsaw=1.0, margin="fixed"), method="clip-ln")
        nested = make(loss=loss, method="clip-ln")
        assert plain.model.dimensions == (256,) and nested.model.dimensions == sizes
        seen = {}

        def recorded(name, term, seen=seen):
            def run(one):
                seen.setdefault(name, []).append(one)
                return term(one)

            return run

        nested.terms = {name: recorded(name, term) for name, term in nested.terms.items()}
        one = batch(plain)
        got, want = nested(*one), plain(*one)
        whole = seen["triplet"][-1]
        assert [len(cut.features[0]) for cut in seen["triplet"]] == list(sizes)
        for cut, size in zip(seen["triplet"], sizes, strict=True):
            for name in ("features", "texts", "negative"):
                head = getattr(whole, name)[..., :size]
                torch.testing.assert_close(getattr(cut, name), head / head.norm(dim=-1, keepdim=True))
        for name in ("triplet", "classification", "jigsaw"):
            values = [terms.TERMS[name](cut) for cut in seen["triplet"]]
            torch.testing.assert_close(values[-1], want[name], rtol=0, atol=0)
            if name == "jigsaw" and form == "conditional":
                assert len(seen[name]) == 1 and torch.equal(got[name], want[name])
            else:
                torch.testing.assert_close(got[name], sum(values) / 3)
                assert not torch.allclose(got[name], want[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((64, 64), "loss.matryoshka must rise, got 64 64"),
        ((128, 64), "loss.matryoshka must rise, got 128 64"),
        ((4, 64), "loss.matryoshka: sizes must be at least 8, got 4"),
        ((64, 512), "loss.matryoshka: this model's vectors have 256 components, got 512"),
    ],
)
def test_sizes_that_no_vector_has(sizes, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        make(loss=LossConfig(matryoshka=sizes))


def test_the_full_size_is_always_trained():
    assert make(loss=LossConfig(matryoshka=(8, 32)), method="clip-ln").sizes == (8, 32, 256)
