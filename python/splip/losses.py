"""The training losses, one function per term of the paper. All features have unit length."""

import torch
import torch.nn.functional as F
from torch import Tensor


def triplet(sketch: Tensor, positive: Tensor, negative: Tensor, margin: Tensor | float) -> Tensor:
    """L_triplet: mean of max(0, d(s, p+) - d(s, p-) + mu), d the squared Euclidean distance.

    Args:
        sketch: ``[B, D]``
        positive: ``[B, D]``, photos of the sketches' classes.
        negative: ``[B, D]``, photos of other classes.
        margin: mu, ``[B]`` or one number. Adaptive: the cosine of the two classes' frozen texts, so
            that close classes are pushed further apart.
    """
    near = (sketch - positive).square().sum(dim=1)
    far = (sketch - negative).square().sum(dim=1)
    return F.relu(near - far + margin).mean()


def classification(features: Tensor, texts: Tensor, labels: Tensor, modality: Tensor, scale: Tensor) -> Tensor:
    """L_class: cross-entropy of the scaled cosine between images and the prompted class texts.

    Args:
        features: ``[B, D]`` images.
        texts: ``[2, C, D]`` class texts of both modalities; each image meets its own modality's.
        labels: ``[B]`` int64.
        modality: ``[B]`` int64, 0 sketch, 1 photo.
        scale: CLIP's logit scale, already exponentiated.
    """
    # Against both modalities' texts at once: a [B, C, D] gather of texts would be far larger.
    both = (features @ texts.flatten(0, 1).T).unflatten(1, texts.shape[:2])
    logits = scale * both[torch.arange(len(features), device=features.device), modality]
    return F.cross_entropy(logits, labels)
