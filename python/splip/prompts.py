"""The three maps between the towers (paper, section 3): vision to text, words to vision, layers to vision."""

import torch
from torch import Tensor, nn


class VisionToText(nn.Module):
    """B_t: patch embeddings to m text tokens.

    Three linear layers with GELU between: the first over the patch axis, so that the layout of the
    drawing counts, the others over the width. The paper says "three linear layers"; their axes are ours.
    """

    def __init__(self, patches: int, visual_width: int, text_width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(visual_width)
        self.over_patches = nn.Linear(patches, tokens)
        self.widen = nn.Linear(visual_width, text_width)
        self.project = nn.Linear(text_width, text_width)
        nn.init.normal_(self.project.weight, std=0.02 * text_width**-0.5)  # small tokens, like CLIP's embeddings
        nn.init.zeros_(self.project.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """``[..., P, d_v]`` to ``[..., m, d_t]``."""
        x = self.over_patches(self.norm(patches).transpose(-1, -2)).transpose(-1, -2)
        x = torch.nn.functional.gelu(self.widen(torch.nn.functional.gelu(x)))
        out: Tensor = self.project(x)
        return out


class WordsToVision(nn.Module):
    """B_v: embeddings of the template's words, class excluded, to visual tokens; one linear, shared by the words."""

    def __init__(self, text_width: int, visual_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(text_width, visual_width)

    def forward(self, words: Tensor) -> Tensor:
        """``[..., w, d_t]`` to ``[..., w, d_v]``."""
        out: Tensor = self.project(words)
        return out


class LayersToVision(nn.Module):
    """B_vt: the states of a text layer over all training classes to n visual tokens, shared by the layers.

    Two pooled rows (mean at [EOS], mean over the words), LayerNorm, bottleneck MLP. The pooling is ours.
    """

    def __init__(self, text_width: int, visual_width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        hidden = max(16, text_width // 4)
        self.norm = nn.LayerNorm(text_width)
        self.reduce = nn.Linear(2 * text_width, hidden)
        self.expand = nn.Linear(hidden, tokens * visual_width)

    def forward(self, at_eos: Tensor, over_words: Tensor) -> Tensor:
        """Two ``[..., d_t]`` to ``[..., n, d_v]``."""
        x = self.norm(torch.stack([at_eos, over_words], dim=-2)).flatten(-2)
        x = self.expand(torch.nn.functional.gelu(self.reduce(x)))
        out: Tensor = x.unflatten(-1, (self.tokens, -1))
        return out
