"""The three maps between the towers (paper, section 3): vision to text, words to vision, layers to vision.

Random maps do harm: tokens that are like no patch draw the class token's attention, and training begins by getting rid
of them. So each map can be moved to where its tokens start (``start_at``): visual ones around the mean state of patches,
text ones as large as CLIP's word embeddings. Both starts are ours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class VisionToText(nn.Module):
    """B_t: patch embeddings to m text tokens.

    Three linear layers with GELU between: the first over the patch axis, so that the layout of the
    drawing counts, the others over the width. The paper says "three linear layers"; their axes are ours.
    """

    def __init__(self, patches: int, visual_width: int, text_width: int, tokens: int, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(visual_width)
        self.over_patches = nn.Linear(patches, tokens)
        self.widen = nn.Linear(visual_width, text_width)
        self.project = nn.Linear(text_width, text_width)
        nn.init.normal_(self.project.weight, std=0.02 * text_width**-0.5)  # small tokens, like CLIP's embeddings
        nn.init.zeros_(self.project.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """``[..., P, d_v]`` to ``[..., m, d_t]``."""
        x = self.over_patches(self.norm(patches).transpose(-1, -2)).transpose(-1, -2)
        x = self.activation(self.widen(self.activation(x)))
        out: Tensor = self.project(x)
        return out

    @torch.no_grad()
    def start_at(self, patches: Tensor, std: float) -> None:
        """Scale the last layer so that the tokens of these patches have this standard deviation."""
        self.project.weight.mul_(std / self(patches).std().clamp(min=1e-12))


class WordsToVision(nn.Module):
    """B_v: embeddings of the template's words, class excluded, to visual tokens; one linear, shared by the words.

    CLIP's embeddings are small (a standard deviation of .01 to .02), beside the linear layer's bias they hardly count:
    ``normed`` puts a LayerNorm in front, without numbers of its own, which the linear layer would only repeat. Ours.
    """

    def __init__(self, text_width: int, visual_width: int, normed: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width, elementwise_affine=False) if normed else nn.Identity()
        self.project = nn.Linear(text_width, visual_width)

    def forward(self, words: Tensor) -> Tensor:
        """``[..., w, d_t]`` to ``[..., w, d_v]``."""
        out: Tensor = self.project(self.norm(words))
        return out

    @torch.no_grad()
    def start_at(self, state: Tensor) -> None:
        """Move the tokens to around a state ``[d_v]`` of the visual tower."""
        self.project.bias.copy_(state)


class LayersToVision(nn.Module):
    """B_vt: the states of a text layer over all training classes to n visual tokens, shared by the layers.

    Two pooled rows (mean at [EOS], mean over the words), LayerNorm, bottleneck MLP. The pooling is ours.
    """

    def __init__(self, text_width: int, visual_width: int, tokens: int, activation: str = "gelu") -> None:
        super().__init__()
        self.tokens, self.activation = tokens, ACTIVATIONS[activation]
        hidden = max(16, text_width // 4)
        self.norm = nn.LayerNorm(text_width)
        self.reduce = nn.Linear(2 * text_width, hidden)
        self.expand = nn.Linear(hidden, tokens * visual_width)

    def forward(self, at_eos: Tensor, over_words: Tensor) -> Tensor:
        """Two ``[..., d_t]`` to ``[..., n, d_v]``."""
        x = self.norm(torch.stack([at_eos, over_words], dim=-2)).flatten(-2)
        x = self.expand(self.activation(self.reduce(x)))
        out: Tensor = x.unflatten(-1, (self.tokens, -1))
        return out

    @torch.no_grad()
    def start_at(self, state: Tensor) -> None:
        """Move the tokens to around a state ``[d_v]`` of the visual tower."""
        self.expand.bias.copy_(state.repeat(self.tokens))


class ModalityTokens(nn.Module):
    """CLIP-AT's prompts (Sain et al., CVPR 2023): learned tokens at the visual input, a set for each modality."""

    def __init__(self, modalities: int, visual_width: int, tokens: int, std: float = 0.02) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(modalities, tokens, visual_width))
        nn.init.normal_(self.tokens, std=std)


class CoupledPrompts(nn.Module):
    """MaPLe's prompts (Khattak et al., CVPR 2023): learned text tokens in each of the first layers, and
    a linear map of each to the visual tokens of that layer.

    Args:
        depth: layers that get prompts.
        tokens: m tokens a layer.
        first: ``[m, d_t]`` where those of the first layer start: embeddings of words.
    """

    def __init__(self, depth: int, tokens: int, text_width: int, visual_width: int, first: Tensor) -> None:
        super().__init__()
        deeper = [torch.randn(tokens, text_width) * 0.02 for _ in range(depth - 1)]
        self.text = nn.ParameterList([nn.Parameter(t) for t in (first.clone(), *deeper)])
        self.couple = nn.ModuleList([nn.Linear(text_width, visual_width) for _ in range(depth)])

    def visual(self) -> list[Tensor]:
        """For each layer ``[m, d_v]``."""
        return [couple(text) for couple, text in zip(self.couple, self.text, strict=True)]


def of_size(prompts: list[Tensor] | None, size: tuple[int, ...], what: str) -> list[Tensor] | None:
    """Prompts that a method wrote, which must all have this size."""
    for layer, prompt in enumerate(prompts or ()):
        if tuple(prompt.shape) != size:
            raise ValueError(f"{what}: layer {layer} has prompts {list(prompt.shape)}, expected {list(size)}")
    return prompts
