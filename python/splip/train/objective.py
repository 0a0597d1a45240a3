"""The loss of one batch: pictures in, the terms of the objective out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip.errors import UserError
from splip.models.retriever import Retriever
from splip.train.losses import NEGATIVES
from splip.train.precision import autocast
from splip.train.rivals import elastic
from splip.train.terms import FORMS, TERMS, Encoded, check, weights


class Objective(nn.Module):
    """The weighted sum of the terms: L = triplet * L_triplet + classification * L_class + jigsaw * L_cjs + ...

    All pictures of a batch, the shuffled ones too, go through the visual tower in one pass, and the
    texts of both modalities through the text tower in one. A term of weight 0 is not computed. With
    ``loss.matryoshka`` a term that reads features is the mean over their sizes (Kusupati et al., NeurIPS 2022);
    negatives are mined once, on whole features.

    Raises:
        UserError: the settings of the loss have a negative weight, or a name that nobody registered.
    """

    def __init__(self, model: Retriever) -> None:
        super().__init__()
        loss = model.config.loss
        check(loss)
        elastic.check(model.config)
        self.model, self.negatives = model, NEGATIVES[loss.negatives]
        self.weights = {name: weight for name, weight in weights(loss).items() if weight}
        self.terms = {name: TERMS[name] for name in self.weights}
        self.form = FORMS[loss.jigsaw_form] if loss.jigsaw else None
        needs = {"classification": "loss.classification must be 0", "triplet": "loss.margin must be fixed"}
        for name, instead in needs.items():
            if model.no_words and name in self.weights and (name != "triplet" or loss.margin == "adaptive"):
                raise UserError(f"{instead}, because {model.no_words}")
        self.sizes = model.dimensions if loss.matryoshka else ()
        self.untrained = elastic.Untrained(model.config, model.backbone_identity) if loss.elastic else None

    def pieces(self, B: int, generator: torch.Generator) -> Tensor:
        """Which permutations of the bank shuffle the pictures of a batch: ``[B, 2]``, two different ones each."""
        count = self.model.config.loss.permutations
        first = torch.randint(count, (B,), generator=generator)
        return torch.stack([first, (first + torch.randint(1, count, (B,), generator=generator)) % count], dim=1)

    def average(self, images: Tensor) -> Tensor:
        """The average patch embeddings of a batch that is computed in parts; ``mean`` of :meth:`forward`.

        Inference's average moves with it. It gets no gradient, which matters only where the patch embeddings are trained:
        with ``train_backbone``, and the scales and shifts of a convolutional stem.
        """
        with torch.no_grad():
            mean = self.model.average(self.model.backbone.embed_patches(images), _modality(images))
        self.model.remember(mean)
        return mean

    def forward(
        self, images: Tensor, labels: Tensor, instances: Tensor, pieces: Tensor, mean: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The objective (``loss``) and its terms, as scalars by name.

        Args:
            images: ``[3 * B, 3, S, S]`` uint8: sketches, positive photos, negative photos.
            labels: ``[3 * B]`` int64 classes.
            instances: ``[3 * B]`` int64, equal for the same thing.
            pieces: ``[B, 2]`` int64, permutations of the bank.
            mean: ``[2, P, d_v]`` average patch embeddings, when this is a part of a larger batch.
        """
        model, modality = self.model, _modality(images)
        with autocast(images.device, model.config.precision):
            patches = model.backbone.embed_patches(images)
            every, kinds = self._with_shuffled(patches, modality, images, pieces)
            if mean is None:
                mean = model.average(patches, modality)
                model.remember(mean)
            conditions = model.condition(every, kinds, mean, labels)
            features, tokens = model.encode(every, kinds, conditions)
        allowed = self._allowed(labels, instances)
        negative, pick = self._negatives(features, allowed)
        batch = Encoded(
            model, features, tokens, conditions.texts, labels, instances, modality, pieces, negative, pick,
            self._ambiguity(images, allowed),
        )  # fmt: skip
        terms = self._terms(batch)
        for name, value in terms.items():
            if value.dim():
                raise ValueError(f"the term {name} gives {list(value.shape)}, not a scalar")
        loss = sum((self.weights[name] * term for name, term in terms.items()), torch.zeros((), device=images.device))
        return {"loss": loss, **terms}

    def _terms(self, batch: Encoded) -> dict[str, Tensor]:
        """The terms of a batch; of several sizes of features their mean."""
        cuts = [batch.cut(size) for size in self.sizes] or [batch]
        found = {}
        for name, term in self.terms.items():
            same = name == "jigsaw" and self.form is not None and not self.form.on_features
            values = [term(cut) for cut in ([batch] if same else cuts)]
            found[name] = values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)
        return found

    def _with_shuffled(
        self, patches: Tensor, modality: Tensor, images: Tensor, pieces: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Patch embeddings and modality of the batch, and behind them those of the jigsaw's pictures."""
        if self.form is None:
            return patches, modality
        model = self.model
        assert model.permutations is not None
        first, second = (model.permutations[pieces[:, i]] for i in (0, 1))
        pictures, permutations, kinds = self.form.shuffle(images, first, second)
        shuffled = model.backbone.embed_patches(pictures, permutations, model.config.loss.tiles)
        return torch.cat([patches, shuffled]), torch.cat([modality, kinds])

    def _allowed(self, labels: Tensor, instances: Tensor) -> Tensor:
        """Which photos count as negatives of a sketch: ``[B, 2 * B]`` bool."""
        B = len(labels) // 3
        same_class = labels[:B, None] == labels[None, B:]
        same_thing = instances[:B, None] == instances[None, B:]
        return same_class & ~same_thing if self.model.config.setting == "fine-grained" else ~same_class

    def _ambiguity(self, images: Tensor, allowed: Tensor) -> Tensor | None:
        """How ambiguous the pairs are, ``[B]``; None: nobody asks."""
        if self.untrained is None:
            return None
        sketch, positive, drawn = self.untrained.features(images).chunk(3)
        return elastic.ambiguity(sketch, positive, torch.cat([positive, drawn]), allowed)

    def _negatives(self, features: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features ``[B, D]`` of the negatives, and their positions ``[B]`` among the photos if they were mined."""
        B = len(allowed)
        photos = features[B : 3 * B]
        with torch.no_grad():
            pick = self.negatives(features[:B], features[B : 2 * B], photos, allowed)
        if pick is None:
            return features[2 * B : 3 * B], None
        pick = torch.where(pick < 0, torch.arange(B, 2 * B, device=pick.device), pick)  # the one drawn
        # A product, not an index: two sketches may pick the same photo, and gradients need a fixed order.
        return F.one_hot(pick, 2 * B).to(photos.dtype) @ photos, pick


def _modality(images: Tensor) -> Tensor:
    """``[3 * B]``: a third of sketches (0), two thirds of photos (1)."""
    third = len(images) // 3
    return (torch.arange(len(images), device=images.device) >= third).long()
