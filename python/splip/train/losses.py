"""The mathematics of the training losses: functions of tensors; and the margins and choices of negatives, by name.

Features have unit length. Sizes: B triplets, D embedding, C classes, G groups of texts, Y permutations.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from splip.models.config import TrainConfig
from splip.plugins import Registry

Margin = Callable[[Tensor, Tensor, Tensor, TrainConfig], Tensor | float]
MARGINS: Registry[Margin] = Registry("loss.margin")
register_margin = MARGINS.register

Negatives = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | None]
NEGATIVES: Registry[Negatives] = Registry("loss.negatives")
register_negatives = NEGATIVES.register


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """d: squared Euclidean distance of rows, ``[B]``."""
    return (a - b).square().sum(dim=1)


def triplet(sketch: Tensor, positive: Tensor, negative: Tensor, margin: Tensor | float) -> Tensor:
    """L_triplet: mean of max(0, d(s, p+) - d(s, p-) + mu).

    Args:
        sketch: ``[B, D]``
        positive: ``[B, D]``, photos of the sketches' classes; fine-grained: of their instances.
        negative: ``[B, D]``, photos of other classes; fine-grained: other instances of the same class.
        margin: mu, ``[B]`` or one number. Adaptive: the cosine of the two classes' frozen texts, so
            that close classes are pushed further apart; 1 when the classes are the same.
    """
    return F.relu(squared_distance(sketch, positive) - squared_distance(sketch, negative) + margin).mean()


@register_margin("adaptive")
def adaptive_margin(own: Tensor, other: Tensor, similarity: Tensor, config: TrainConfig) -> Tensor | float:
    """mu: the cosine of the two classes' frozen texts, 1 when the classes are the same; ``loss.margin_floor`` at least.

    The floor is ours. Cosines of CLIP's texts are .6 to .9; those of a small text tower lie around 0, and a margin that is
    not positive asks nothing more of a negative that is already further away than the positive.

    Args:
        own: ``[B]`` int64, the sketches' classes.
        other: ``[B]`` int64, the negatives' classes.
        similarity: ``[C, C]``, cosines of the classes' texts.

    Returns:
        ``[B]``, or one number for all.
    """
    floor = config.loss.margin_floor
    margin = similarity[own, other]
    return margin if floor is None else margin.clamp(min=floor)


@register_margin("fixed")
def fixed_margin(own: Tensor, other: Tensor, similarity: Tensor, config: TrainConfig) -> Tensor | float:
    """mu: ``loss.fixed_margin``, whatever the classes are."""
    return config.loss.fixed_margin


@register_negatives("random")
def drawn(sketch: Tensor, positive: Tensor, photos: Tensor, allowed: Tensor) -> Tensor | None:
    """For each sketch the photo that was drawn as its negative: nothing is mined."""
    return None


@register_negatives("semi-hard")
def semi_hard(sketch: Tensor, positive: Tensor, photos: Tensor, allowed: Tensor) -> Tensor | None:
    """For each sketch the photo of the batch to use as its negative: the nearest that is further away than
    the positive (Schroff et al., CVPR 2015).

    Args:
        sketch: ``[B, D]``
        positive: ``[B, D]``
        photos: ``[N, D]``
        allowed: ``[B, N]`` bool: photos that count as negatives of a sketch.

    Returns:
        ``[B]`` int64 positions in ``photos``; -1 where none is allowed and further away.
    """
    far = 2 - 2 * sketch @ photos.T
    candidates = allowed & (far > squared_distance(sketch, positive)[:, None])
    chosen = far.masked_fill(~candidates, float("inf")).argmin(dim=1)
    return torch.where(candidates.any(dim=1), chosen, torch.full_like(chosen, -1))


def classification(features: Tensor, texts: Tensor, labels: Tensor, modality: Tensor | None, scale: Tensor) -> Tensor:
    """L_class: cross-entropy of the scaled cosine between images and the prompted class texts.

    Args:
        features: ``[B, D]`` images.
        texts: ``[2, C, D]`` class texts of both modalities, or ``[B, C, D]`` of each image.
        labels: ``[B]`` int64.
        modality: ``[B]`` int64, whose texts an image meets; None: its own.
        scale: CLIP's logit scale, already exponentiated.
    """
    if modality is None:
        logits = torch.einsum("bd,bcd->bc", features, texts)
    else:
        # Against both modalities' texts at once: a [B, C, D] gather of texts would be far larger.
        both = (features @ texts.flatten(0, 1).T).unflatten(1, texts.shape[:2])
        logits = torch.einsum("bgc,bg->bc", both, F.one_hot(modality, len(texts)).to(both.dtype))
    return F.cross_entropy(scale * logits, labels)


def conditional_jigsaw(whole: Tensor, positive: Tensor, negative: Tensor, target: Tensor) -> Tensor:
    """L_cjs: CE(F_js(r), y) + mean of max(0, CE(F_js(r+), y) - CE(F_js(r-), y)).

    The permutation of the sketch s' must be readable beside the whole sketch s, and beside the
    positive photo better than beside the negative one.

    Args:
        whole: F_js of r = [s, s'], logits ``[B, Y]``.
        positive: of r+ = [p+, s'].
        negative: of r- = [p-, s'].
        target: y, ``[B]`` int64.
    """
    near = F.cross_entropy(positive, target, reduction="none")
    far = F.cross_entropy(negative, target, reduction="none")
    return F.cross_entropy(whole, target) + F.relu(near - far).mean()


def permuted_triplet(sketch: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """CLIP-AT's patch-shuffling loss (Sain et al., CVPR 2023): a shuffled sketch is nearer to its photo
    shuffled alike than to the same photo shuffled otherwise. All ``[B, D]``."""
    return F.relu(squared_distance(sketch, same) - squared_distance(sketch, other) + margin).mean()


def relative_distance_divergence(sketch: Tensor, positive: Tensor, negative: Tensor, labels: Tensor) -> Tensor:
    """CLIP-AT's f-divergence (Sain et al., CVPR 2023): d(s, p+) - d(s, p-) is spread alike in all classes.

    Each class's softmax over the relative distances of its triplets, in rising order; the mean KL
    divergence over all ordered pairs of classes. The order is ours: triplets of two classes do not correspond.

    Args:
        sketch: ``[B, D]``, ``positive`` and ``negative`` alike.
        labels: ``[B]`` int64; only classes with the largest count of triplets take part.

    Returns:
        0 when fewer than two classes can be compared.
    """
    relative = squared_distance(sketch, positive) - squared_distance(sketch, negative)
    classes, counts = labels.unique(return_counts=True)
    classes = classes[counts == counts.max()]
    if len(classes) < 2 or int(counts.max()) < 2:
        return relative.sum() * 0
    rows = torch.stack([relative[labels == c].sort().values for c in classes])
    log_p = F.log_softmax(rows, dim=1)
    # KL(i || j) = sum p_i (log p_i - log p_j), over all pairs at once; 0 where i = j.
    entropy = (log_p.exp() * log_p).sum(dim=1)
    cross = log_p.exp() @ log_p.T
    return (entropy[:, None] - cross).sum() / (len(classes) * (len(classes) - 1))
