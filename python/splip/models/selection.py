"""Which parameters training changes, by the settings."""

from typing import Any

from torch import nn

from splip.errors import UserError


def trained(model: Any) -> list[nn.Parameter]:
    """All outside a retriever's backbone; its normalisations, the scales and shifts of its stem and other parts as the
    settings say.

    With ``train_backbone`` everything but logit scale and word embeddings.

    Raises:
        UserError: the backbone has no part that ``train_also`` names, or all is trained already.
    """
    c, clip = model.config, model.backbone
    if c.train_backbone and c.train_also:
        raise UserError("train_backbone trains all weights: leave out train_also")
    if c.train_backbone:
        # Three quarters of a tiny model: random vectors tell words apart as well as trained ones.
        frozen = (clip.clip.logit_scale, clip.text.token_embedding.weight)
        return [p for p in model.parameters() if all(p is not f for f in frozen)]
    wanted = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    if c.train_layernorm:
        wanted += clip.visual_tower.normalisations()
    if c.train_layernorm if c.train_stem is None else c.train_stem:
        wanted += clip.visual_tower.stem_affine()
    for name in c.train_also:
        parts = clip.visual_tower.part(name)
        if not parts:
            raise UserError(f"train_also: the visual tower of backbone {c.backbone.name} has no part {name}")
        wanted += parts
    if c.train_text_layernorm and clip.text_tower is not None:
        text = (*clip.text.transformer.modules(), clip.text.ln_final)
        wanted += [p for m in text if isinstance(m, nn.LayerNorm) for p in m.parameters()]
    return wanted
