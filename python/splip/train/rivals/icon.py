"""ICon, the loss of SketchScape (Demic and Cehovin Zajc, *Back To The Drawing Board*, BMVC 2025, arXiv 2509.06566).

Published: similarities of a batch of sketches and their photos are matched with a target matrix, by the KL divergence of I-Con
(Alshammari et al., ICLR 2025), in the direction from sketches to photos; a share alpha of the target is spread evenly,
because a sketch is ambiguous. The released code's numbers are a temperature of .07 and alpha .2.

    q(j|i) = softmax over j of cos(s_i, p_j) / tau
    p(j|i) = (1 - alpha) [p_j is the sketch's own] / (how many are) + alpha / N
    L = mean over i of sum_j p(j|i) log(p(j|i) / q(j|i))

Ours: the N photos are both thirds of the batch, positives and negatives; a sketch's own are all those of its class, or in
the fine-grained setting of its very thing, and share 1 - alpha (the paper's pairs have one each); its weight beside
SpLIP's other losses.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def icon(sketch: Tensor, photos: Tensor, own: Tensor, temperature: float, spread: float) -> Tensor:
    """Mean KL divergence of the learned from the target distribution over the photos.

    Args:
        sketch: ``[B, D]`` of unit length.
        photos: ``[N, D]`` of unit length.
        own: ``[B, N]`` bool: the photos that a sketch is to find, at least one.
        temperature: tau.
        spread: alpha, the share of the target that all photos get alike.
    """
    log_q = F.log_softmax(sketch @ photos.T / temperature, dim=1)
    p = (1 - spread) * own / own.sum(dim=1, keepdim=True) + spread / len(photos)
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1).mean()
