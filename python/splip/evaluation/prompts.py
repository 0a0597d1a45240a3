"""What a model's visual prompts do: its quality without them, with the other modality's, and who looks at them.

A method whose prompts work loses by either change. A class token that looks at its prompts less than at as many patches
(``uniform``) has learned to leave them aside.
"""

import typing

import torch

from splip.evaluation.test_set import Change, TestSet
from splip.models.retriever import Retriever

CHANGES: tuple[Change, ...] = typing.get_args(Change)
PICTURES = 64  # of each modality, for the attention


def written(model: Retriever) -> bool:
    """Whether a model in eval mode has visual prompts at all."""
    return model.visual_prompts()[0] is not None


@torch.no_grad()
def attention(test: TestSet, model: Retriever, device: torch.device) -> dict[str, float | list[float]]:
    """The share of the class token's attention that goes to the prompts, over up to 64 pictures of each modality.

    Args:
        model: in eval mode, with visual prompts.

    Returns:
        ``sketch`` and ``photo``: a share for each prompted layer; ``mean``: of all these; ``uniform``: the share that
        they would have if it looked at all tokens alike.
    """
    shares: list[list[float]] = []
    for modality, pictures in enumerate((test.sketch_pictures, test.photo_pictures)):
        count = min(PICTURES, len(pictures))
        chosen = [i * len(pictures) // count for i in range(count)]
        patches = model.backbone.embed_patches(pictures.get(chosen).to(device))
        prompts = model.prompts_for(patches, modality)
        assert prompts is not None
        shares.append(model.backbone.slot_attention(patches, prompts).tolist())
        slots = prompts[0].shape[-2]
    everything = [share for each in shares for share in each]
    mean, uniform = sum(everything) / len(everything), slots / (slots + model.backbone.visual_tower.tokens)
    return {"sketch": shares[0], "photo": shares[1], "mean": mean, "uniform": uniform}
