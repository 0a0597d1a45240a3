"""The terms of the objective by name, and the forms of the jigsaw: what each takes of an encoded batch.

Sizes: B triplets, S image side, D embedding, C classes, G groups of texts, P patches, d_v width of the visual tower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from splip.errors import UserError
from splip.models.config import LossConfig, TrainConfig
from splip.models.jigsaw import WITH_HEAD
from splip.models.retriever import Retriever
from splip.plugins import Registry
from splip.train import losses
from splip.train.precision import autocast
from splip.train.rivals import consistency as mcc
from splip.train.rivals import elastic
from splip.train.rivals import icon as sketchscape


@dataclass
class Encoded:
    """A batch as the towers see it: B sketches, B positive photos, B negative photos, then the shuffled pictures."""

    model: Retriever
    features: Tensor  # [3 * B + N, D], unit length; N shuffled pictures at the end
    tokens: Tensor  # [3 * B + N, 1 + P, d_v] of the last visual layer
    texts: Tensor  # [G, C, D] class texts, unit length; G is 2, or every image its own
    labels: Tensor  # [3 * B] int64
    instances: Tensor  # [3 * B] int64, equal for the same thing
    modality: Tensor  # [3 * B] int64, 0 sketch, 1 photo
    pieces: Tensor  # [B, 2] int64, permutations of the bank
    negative: Tensor  # [B, D] of the photos that are the negatives
    pick: Tensor | None  # [B] int64, their places among the photos if they were mined; None: as drawn
    ambiguity: Tensor | None = None  # [B] of the pairs, with loss.elastic

    @property
    def config(self) -> TrainConfig:
        return self.model.config

    @property
    def size(self) -> int:
        """B, triplets."""
        return len(self.labels) // 3

    @cached_property
    def _thirds(self) -> tuple[Tensor, ...]:
        # Once: gradients of all terms meet here, in a fixed order.
        return self.features[: len(self.labels)].chunk(3)

    def cut(self, size: int) -> "Encoded":
        """The batch with the first ``size`` components of features and texts, normalised again; D: the batch itself."""
        if size == self.features.shape[-1]:
            return self
        features, texts, negative = (
            F.normalize(whole[..., :size], dim=-1) for whole in (self.features, self.texts, self.negative)
        )
        return replace(self, features=features, texts=texts, negative=negative)

    @property
    def sketch(self) -> Tensor:
        """Features of the sketches, ``[B, D]``."""
        return self._thirds[0]

    @property
    def positive(self) -> Tensor:
        """Features of the positive photos, ``[B, D]``."""
        return self._thirds[1]

    @property
    def photos(self) -> Tensor:
        """Features of the positive and the drawn negative photos, ``[2 * B, D]``."""
        return self.features[self.size : 3 * self.size]

    @property
    def own(self) -> Tensor:
        """Which of the photos a sketch is to find, ``[B, 2 * B]`` bool: its class's, fine-grained those of its thing."""
        kind = self.instances if self.config.setting == "fine-grained" else self.labels
        return kind[: self.size, None] == kind[None, self.size :]

    @property
    def other(self) -> Tensor:
        """Classes of the negatives, ``[B]`` int64."""
        B = self.size
        return self.labels[2 * B :] if self.pick is None else self.labels[B:][self.pick]


Term = Callable[[Encoded], Tensor]  # a scalar
TERMS: Registry[Term] = Registry("loss.terms")
register_term = TERMS.register
WEIGHTED = (
    "triplet",
    "classification",
    "jigsaw",
    "divergence",
    "icon",
    "consistency",
)  # weights are settings of these names

COLUMNS = ("step", "loss", "lr", "seconds", "stop")  # of log.csv; no term may be called so, nor begin with val_


def weights(loss: LossConfig) -> dict[str, float]:
    """The weight of each term, by its name."""
    return {**{name: float(getattr(loss, name)) for name in WEIGHTED}, **loss.terms}


def check(loss: LossConfig) -> None:
    """Refuse weights and names that no objective can have.

    Raises:
        UserError: a weight is negative, or a name is not registered.
    """
    for name in loss.terms:
        if name in WEIGHTED:
            raise UserError(f"loss.terms: the weight of {name} is loss.{name}")
        if name in COLUMNS or name.startswith("val_"):
            raise UserError(f"loss.terms: {name} is another column of log.csv")
    for name, weight in weights(loss).items():
        where = f"loss.{name}" if name in WEIGHTED else f"loss.terms.{name}"
        if not 0 <= weight < math.inf:
            raise UserError(f"{where} must not be negative, got {weight}")
    for name in ("icon_temperature", "consistency_temperature"):
        if not 0 < getattr(loss, name) < math.inf:
            raise UserError(f"loss.{name} must be greater than 0, got {getattr(loss, name)}")
    if not 0 <= loss.icon_spread <= 1:
        raise UserError(f"loss.icon_spread must be between 0 and 1, got {loss.icon_spread}")
    for registry, names in ((TERMS, loss.terms), (losses.MARGINS, [loss.margin]), (losses.NEGATIVES, [loss.negatives]),
                            (FORMS, [loss.jigsaw_form])):  # fmt: skip
        for name in names:
            registry[name]  # or a UserError


@register_term("triplet")
def triplet(batch: Encoded) -> Tensor:
    """L_triplet, with the margin that ``loss.margin`` names; with ``loss.elastic`` as strong as a pair is plain."""
    own, similarity = batch.labels[: batch.size], batch.model.class_similarity
    margin = losses.MARGINS[batch.config.loss.margin](own, batch.other, similarity, batch.config)
    if batch.ambiguity is None:
        return losses.triplet(batch.sketch, batch.positive, batch.negative, margin)
    loss = batch.config.loss
    strength = 1 - loss.elastic * batch.ambiguity
    return elastic.triplet(batch.sketch, batch.positive, batch.negative, margin, strength, loss.elastic_scales)


@register_term("classification")
def classification(batch: Encoded) -> Tensor:
    """L_class of sketches and photos, each against its modality's texts."""
    scale = batch.model.backbone.clip.logit_scale.exp().detach()
    if batch.config.loss.logit_scale is not None:
        scale = torch.full_like(scale, batch.config.loss.logit_scale)
    whole, modality = len(batch.labels), None if batch.model.per_image else batch.modality
    return losses.classification(batch.features[:whole], batch.texts[:whole], batch.labels, modality, scale)


@register_term("jigsaw")
def jigsaw(batch: Encoded) -> Tensor:
    """The loss of the form that ``loss.jigsaw_form`` names."""
    return FORMS[batch.config.loss.jigsaw_form].loss(batch)


@register_term("divergence")
def divergence(batch: Encoded) -> Tensor:
    """L_delta, over the triplets as they are after mining."""
    return losses.relative_distance_divergence(batch.sketch, batch.positive, batch.negative, batch.labels[: batch.size])


@register_term("icon")
def icon(batch: Encoded) -> Tensor:
    """SketchScape's loss, over all photos of the batch."""
    loss = batch.config.loss
    return sketchscape.icon(batch.sketch, batch.photos, batch.own, loss.icon_temperature, loss.icon_spread)


@register_term("consistency")
def consistency(batch: Encoded) -> Tensor:
    """Sketches relate to each other as their photos do, in our reading of MCC."""
    return mcc.consistency(batch.sketch, batch.positive, batch.config.loss.consistency_temperature)


# ---- forms of the jigsaw ----


class JigsawForm:
    """Which pictures of a batch are shuffled, and what is asked of them."""

    on_features: ClassVar[bool] = True  # False: the loss does not change with the size of the features

    @staticmethod
    def shuffle(images: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pictures to be encoded besides the batch.

        Args:
            images: ``[3 * B, 3, S, S]`` uint8: sketches, positive photos, negative photos.
            first, second: ``[B, tiles]`` int64, two different permutations for each triplet.

        Returns:
            ``(pictures [N, 3, S, S], their permutations [N, tiles], their modality [N] int64)``.
        """
        raise NotImplementedError

    @staticmethod
    def loss(batch: Encoded) -> Tensor:
        """A scalar; ``batch.features`` and ``batch.tokens`` of the N pictures stand after the first 3 * B."""
        raise NotImplementedError


FORMS: Registry[type[JigsawForm]] = Registry("loss.jigsaw_form")


def register_jigsaw(name: str, head: bool = False) -> Callable[[type[JigsawForm]], type[JigsawForm]]:
    """A decorator that makes a class the form of this name.

    Args:
        name: for ``loss.jigsaw_form``.
        head: the form trains F_js, ``model.jigsaw``.
    """
    add = FORMS.register(name)
    if head:
        WITH_HEAD.add(name)
    return add


@register_jigsaw("conditional", head=True)
class Conditional(JigsawForm):
    """SpLIP: F_js reads the sketch's permutation beside the sketch, and beside its photos."""

    on_features = False

    @staticmethod
    def shuffle(images: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return images[: len(first)], first, torch.zeros(len(first), dtype=torch.int64, device=images.device)

    @staticmethod
    def loss(batch: Encoded) -> Tensor:
        head, tokens, B = batch.model.jigsaw, batch.tokens, batch.size
        assert head is not None
        sketch, positive, negative, pieces = tokens.chunk(4)
        if batch.pick is not None:
            choice = F.one_hot(batch.pick, 2 * B).to(tokens.dtype)
            negative = torch.einsum("bn,ntd->btd", choice, tokens[B : 3 * B])
        with autocast(tokens.device, batch.config.precision):
            logits = head(torch.cat([sketch, positive, negative]), pieces.repeat(3, 1, 1))
        whole, near, far = logits.float().chunk(3)
        return losses.conditional_jigsaw(whole, near, far, batch.pieces[:, 0])


@register_jigsaw("permuted-triplet")
class PermutedTriplet(JigsawForm):
    """CLIP-AT: a shuffled sketch is nearer to its photo shuffled alike than to the same photo shuffled otherwise."""

    @staticmethod
    def shuffle(images: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B = len(first)
        pictures = torch.cat([images[:B], images[B : 2 * B], images[B : 2 * B]])
        modality = (torch.arange(3 * B, device=images.device) >= B).long()
        return pictures, torch.cat([first, first, second]), modality

    @staticmethod
    def loss(batch: Encoded) -> Tensor:
        sketch, alike, otherwise = batch.features[len(batch.labels) :].chunk(3)
        return losses.permuted_triplet(sketch, alike, otherwise, batch.config.loss.fixed_margin)
