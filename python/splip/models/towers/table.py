"""Which families of backbones there are, and what each can do: what the tests run and what the documentation shows.

``python benchmarks/report.py --update`` writes the table into docs/how-to/backbones.md. This module imports nothing heavy.
"""

from typing import NamedTuple

# What a family may do, and what its column is called.
TASKS = {
    "zero-shot": "zero-shot",
    "clip-ln": "clip-ln",
    "clip-at": "clip-at",
    "maple": "maple",
    "splip": "splip",
    "words": "search by words",
    "export": "export",
    "export --text": "export `--text`",
}
CONVOLUTIONAL = "its visual tower is convolutional: it has no sequence of tokens that prompts could join"
NO_PROMPTS = f"takes no prompts: {CONVOLUTIONAL}"
NO_TEXT = "has no text tower"
NO_PAIRS = "does not read texts with CLIP's own tokenizer"


class Family(NamedTuple):
    """A kind of backbone."""

    key: str  # of the tests' small one
    title: str
    examples: str
    prompts_at: str
    refused: dict[str, str] = {}  # noqa: RUF012  task: what the message says


_CONV = dict.fromkeys(("clip-at", "maple", "splip"), NO_PROMPTS)
_VISION = dict.fromkeys(("maple", "splip", "words", "export --text"), NO_TEXT)
FAMILIES = (
    Family("clip", "CLIP ViT", "`ViT-B-32`, `ViT-L-14`, `splip-tiny`", "behind the class token"),
    Family("siglip", "SigLIP, SigLIP2", "`ViT-B-16-SigLIP`, `ViT-B-16-SigLIP2`", "before the patches",
           {"export --text": NO_PAIRS}),
    Family("eva", "EVA02", "`EVA02-B-16`, `EVA02-L-14`", "behind the class token, not turned"),
    Family("pe", "PE-Core", "`PE-Core-B-16`, `PE-Core-L-14-336`", "behind the class token, not turned"),
    Family("mobile-vit", "MobileCLIP ViT", "`MobileCLIP2-B`, `MobileCLIP-B`", "behind the class token"),
    Family("dinov2", "DINOv2", "`timm:vit_small_patch14_dinov2.lvd142m@224`", "behind the class token", _VISION),
    Family("dinov2-reg", "DINOv2 with registers", "`timm:vit_small_patch14_reg4_dinov2.lvd142m@224`",
           "behind the class token", _VISION),
    Family("dinov3", "DINOv3", "`timm:vit_small_patch16_dinov3.lvd1689m`", "behind the class token, not turned", _VISION),
    Family("mobile", "MobileCLIP2, FastViT", "`MobileCLIP2-S0`, `MobileCLIP2-S4`", "", _CONV),
    Family("convnext", "ConvNeXt", "`convnext_base_w`", "", _CONV),
    Family("resnet", "ResNet", "`RN50`", "", _CONV),
)  # fmt: skip


def markdown() -> str:
    """The table of families and tasks."""
    head = ["family", "such as", *TASKS.values(), "prompts stand"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for family in FAMILIES:
        cells = ["no" if task in family.refused else "yes" for task in TASKS]
        lines.append("| " + " | ".join([family.title, family.examples, *cells, family.prompts_at or "nowhere"]) + " |")
    return "\n".join(lines)
