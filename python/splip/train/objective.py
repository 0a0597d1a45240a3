"""The loss of one batch: pictures in, the terms of the objective out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splip.models.retriever import SpLIP
from splip.train import losses

TERMS = ("triplet", "classification", "jigsaw", "divergence")


class Objective(nn.Module):
    """L = triplet * L_triplet + classification * L_class + jigsaw * L_cjs + divergence * L_delta.

    All pictures of a batch, the shuffled ones too, go through the visual tower in one pass, and the
    texts of both modalities through the text tower in one. A term of weight 0 is not computed.
    """

    def __init__(self, model: SpLIP) -> None:
        super().__init__()
        self.model = model
        self.weights = {name: float(getattr(model.config.loss, name)) for name in TERMS}

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
        model, config = self.model, self.model.config
        B = len(images) // 3
        modality, conditional = _modality(images), config.loss.jigsaw_form == "conditional"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            patches = model.backbone.embed_patches(images)
            everything, kinds = [patches], [modality]
            if self.weights["jigsaw"]:
                shuffled, which = self._shuffled(images, pieces, conditional)
                everything.append(shuffled)
                kinds.append(which)
            if mean is None:
                mean = model.average(patches, modality)
                model.remember(mean)
            every, kind = torch.cat(everything), torch.cat(kinds)
            conditions = model.condition_images(every, kind) if model.per_image else model.condition_modalities(mean)
            features, tokens = model.encode(every, kind, conditions)
        sketch, positive, _ = features[: 3 * B].chunk(3)
        negative, pick = self._negatives(features, labels, instances)

        terms: dict[str, Tensor] = {}
        if self.weights["triplet"]:
            margin: Tensor | float = config.loss.fixed_margin
            if config.loss.margin == "adaptive":
                other = labels[2 * B :] if pick is None else labels[B:][pick]
                margin = model.class_similarity[labels[:B], other]
            terms["triplet"] = losses.triplet(sketch, positive, negative, margin)
        if self.weights["classification"]:
            scale = model.backbone.clip.logit_scale.exp().detach()
            if config.loss.logit_scale is not None:
                scale = torch.full_like(scale, config.loss.logit_scale)
            terms["classification"] = losses.classification(
                features[: 3 * B], conditions.texts[: 3 * B], labels, None if model.per_image else modality, scale
            )
        if self.weights["jigsaw"] and conditional:
            terms["jigsaw"] = self._conditional_jigsaw(tokens, pick, pieces[:, 0])
        elif self.weights["jigsaw"]:
            same, alike, otherwise = features[3 * B :].chunk(3)
            terms["jigsaw"] = losses.permuted_triplet(same, alike, otherwise, config.loss.fixed_margin)
        if self.weights["divergence"]:
            terms["divergence"] = losses.relative_distance_divergence(sketch, positive, negative, labels[:B])
        loss = sum((self.weights[name] * term for name, term in terms.items()), torch.zeros((), device=images.device))
        return {"loss": loss, **terms}

    def _shuffled(self, images: Tensor, pieces: Tensor, conditional: bool) -> tuple[Tensor, Tensor]:
        """Patch embeddings of shuffled pictures, and their modality.

        Conditional: the sketches. CLIP-AT's triplet: the sketches, the positives alike, the positives otherwise.
        """
        model, B = self.model, len(images) // 3
        assert model.permutations is not None
        first, second = (model.permutations[pieces[:, i]] for i in (0, 1))
        tiles = model.config.loss.tiles
        if conditional:
            return model.backbone.embed_patches(images[:B], first, tiles), _modality(images)[:B]
        pictures = torch.cat([images[:B], images[B : 2 * B], images[B : 2 * B]])
        return model.backbone.embed_patches(pictures, torch.cat([first, first, second]), tiles), _modality(images)

    def _negatives(self, features: Tensor, labels: Tensor, instances: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features ``[B, D]`` of the negatives, and their positions ``[B]`` among the photos if they were mined."""
        B = len(labels) // 3
        if self.model.config.loss.negatives == "random":
            return features[2 * B : 3 * B], None
        photos = features[B : 3 * B]
        same_class = labels[:B, None] == labels[None, B:]
        same_thing = instances[:B, None] == instances[None, B:]
        allowed = same_class & ~same_thing if self.model.config.setting == "fine-grained" else ~same_class
        with torch.no_grad():
            pick = losses.semi_hard(features[:B], features[B : 2 * B], photos, allowed)
            pick = torch.where(pick < 0, torch.arange(B, 2 * B, device=pick.device), pick)  # the one drawn
        # A product, not an index: two sketches may pick the same photo, and gradients need a fixed order.
        return F.one_hot(pick, 2 * B).to(photos.dtype) @ photos, pick

    def _conditional_jigsaw(self, tokens: Tensor, pick: Tensor | None, target: Tensor) -> Tensor:
        head, B = self.model.jigsaw, len(target)
        assert head is not None
        sketch, positive, negative, pieces = tokens.chunk(4)
        if pick is not None:
            choice = F.one_hot(pick, 2 * B).to(tokens.dtype)
            negative = torch.einsum("bn,ntd->btd", choice, tokens[B : 3 * B])
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.model.config.precision == "bf16"):
            logits = head(torch.cat([sketch, positive, negative]), pieces.repeat(3, 1, 1))
        whole, near, far = logits.float().chunk(3)
        return losses.conditional_jigsaw(whole, near, far, target)


def _modality(images: Tensor) -> Tensor:
    """``[3 * B]``: a third of sketches (0), two thirds of photos (1)."""
    third = len(images) // 3
    return (torch.arange(len(images), device=images.device) >= third).long()
