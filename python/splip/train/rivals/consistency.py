"""A consistency loss as MCC (IJCAI 2024) has one.

Published, as far as it could be found: that it has such a loss, and its figures: Sketchy-2 79.0 / 75.7, with a DINO ViT
80.5 / 76.8. It works on a backbone that reads no words, so we take it to be about pictures, not class texts. Neither its
paper nor its code could be read: **the formula is our reading**, no reproduction.

Ours: sketches relate to each other as their photos do. For triplet i of a batch and all others j,

    P_s(j|i) = softmax over j of cos(s_i, s_j) / tau,   P_p(j|i) = softmax over j of cos(p_i, p_j) / tau
    L = mean over i of (KL(P_s || M) + KL(P_p || M)) / 2,   M = (P_s + P_p) / 2

the Jensen-Shannon divergence, in nats: 0 if the relations are the same, log 2 at most, and alike in both directions.
"""

import math

import torch
from torch import Tensor


def consistency(sketch: Tensor, photo: Tensor, temperature: float) -> Tensor:
    """Mean Jensen-Shannon divergence of how sketches, and how their photos, relate to the others of the batch.

    Args:
        sketch: ``[B, D]`` of unit length, B at least 3.
        photo: ``[B, D]``, the sketches' own.
        temperature: tau.
    """
    itself = torch.eye(len(sketch), dtype=torch.bool, device=sketch.device)

    def relations(x: Tensor) -> Tensor:
        """log P(j|i), ``[B, B - 1]``."""
        return (x @ x.T / temperature)[~itself].view(len(x), -1).log_softmax(dim=1)

    log_s, log_p = relations(sketch), relations(photo)
    log_m = torch.logaddexp(log_s, log_p) - math.log(2)
    both = log_s.exp() * (log_s - log_m) + log_p.exp() * (log_p - log_m)
    return both.sum(dim=1).mean() / 2
