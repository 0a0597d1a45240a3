"""A convolutional stem in place of a ViT's patch embedding, for backbones that learn from few pictures.

One convolution of whole patches has to learn from nothing but labels what an edge is and where it lies. Small
convolutions know neighbourhoods from the start, and train in a tenth of the pictures (Xiao et al., *Early
Convolutions Help Transformers See Better*, NeurIPS 2021). What comes out is what the patch embedding gives: one vector a
patch, E_0, so prompts and everything behind it are the same.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Backbones with a stem: channels of the first convolution.
STEMS = {"splip-tiny": 32, "splip-tiny-2": 32, "splip-tiny-3": 32, "splip-small": 48, "splip-compact": 48}


def as_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and the shift of each channel that a BatchNorm is in inference."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


@torch.no_grad()
def match_statistics(
    norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> None:
    """Make a BatchNorm the map ``scale * x + shift``, for inputs whose statistics are those of ``x [B, C, ...]``."""
    assert norm.running_mean is not None and norm.running_var is not None
    over = [0, *range(2, x.dim())]
    mean, variance = x.mean(dim=over), x.var(dim=over, unbiased=False)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    scale = torch.ones_like(mean) if scale is None else scale
    norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
    norm.bias.copy_(scale * mean + (0 if shift is None else shift))


class ConvStem(nn.Module):
    """Pixels ``[B, 3, S, S]`` to patch embeddings ``[B, d_v, S / 16, S / 16]``, for patches of 16 pixels.

    Four halvings with residual blocks between, then a depthwise convolution as wide as the grid: it mixes the patches by
    their places, without which the class token would begin as a plain mean that has lost the layout.

    Args:
        width: d_v.
        channels: of the first convolution.
        normalised: a BatchNorm after each convolution, for training from random weights; :meth:`folded` takes them out.
    """

    def __init__(self, width: int, channels: int, normalised: bool = False) -> None:
        super().__init__()
        c = channels
        self.channels, self.out_channels = channels, width
        self.layers = nn.ModuleList(
            [
                _Convolution(3, c, 2, normalised),
                _Convolution(c, 2 * c, 2, normalised),
                _Residual(2 * c, normalised),
                _Convolution(2 * c, 4 * c, 2, normalised),
                _Residual(4 * c, normalised),
            ]
        )
        self.last = _Convolution(4 * c, width, 2, normalised, active=False)
        self.places = nn.Conv2d(width, width, 7, padding=3, groups=width)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.layers:
            x = layer(x)
        x = self.last(x)
        return x + self.places(x)

    def folded(self) -> "ConvStem":
        """The same map without BatchNorms: their statistics become part of the convolutions."""
        made = ConvStem(self.out_channels, self.channels)
        for source, target in zip(self._convolutions(), made._convolutions(), strict=True):
            source.fold_into(target)
        made.places.load_state_dict(self.places.state_dict())
        return made.eval()

    @torch.no_grad()
    def adopt(self, folded: "ConvStem", images: Tensor) -> None:
        """Become a folded stem's map with BatchNorms, whose statistics are those of these normalised pictures."""
        self.places.load_state_dict(folded.places.state_dict())
        hooks = []
        for target, source in zip(self._convolutions(), folded._convolutions(), strict=True):
            target.convolution.load_state_dict(source.convolution.state_dict())
            assert target.norm is not None

            def calibrate(norm: nn.BatchNorm2d, inputs: tuple[Tensor], source: _Convolution = source) -> None:
                match_statistics(norm, inputs[0], source.scale, source.shift)

            hooks.append(target.norm.register_forward_pre_hook(calibrate))  # each sees what those before it give now
        self(images)
        for hook in hooks:
            hook.remove()

    def merged(self) -> "ConvStem":
        """The same map for inference alone: convolutions without a scale of their own."""
        made = copy.deepcopy(self)
        for convolution in made._convolutions():
            convolution.merge()
        return made

    def affine(self) -> list[nn.Parameter]:
        """The scales and shifts of all channels."""
        return [p for m in self._convolutions() for p in (m.scale, m.shift) if p is not None]

    def _convolutions(self) -> list["_Convolution"]:
        return [m for m in self.modules() if isinstance(m, _Convolution)]


class _Convolution(nn.Module):
    """A convolution of 3 x 3 with a scale and a shift for each channel: what a BatchNorm is in inference, and what stays
    of one. They are trained where LayerNorms are, and are part of the convolution's weights as it runs."""

    scale: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, stride: int, normalised: bool, active: bool = True) -> None:
        super().__init__()
        self.active, self.stride = active, stride
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs) if normalised else None
        self.scale = None if normalised else nn.Parameter(torch.ones(outputs))
        self.shift = None if normalised else nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.convolution.weight
        if self.scale is not None:
            weight = weight * self.scale[:, None, None, None]
        x = F.conv2d(x, weight, self.shift, self.stride, 1)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x) if self.active else x

    @torch.no_grad()
    def fold_into(self, target: "_Convolution") -> None:
        assert self.norm is not None and target.shift is not None
        scale, shift = as_affine(self.norm)
        target.convolution.weight.copy_(self.convolution.weight * scale[:, None, None, None])
        target.shift.copy_(shift)

    @torch.no_grad()
    def merge(self) -> None:
        """Make the scale a part of the weights for good."""
        assert self.scale is not None
        self.convolution.weight.mul_(self.scale[:, None, None, None])
        self.scale = None


class _Residual(nn.Module):
    def __init__(self, channels: int, normalised: bool) -> None:
        super().__init__()
        self.first = _Convolution(channels, channels, 1, normalised)
        self.second = _Convolution(channels, channels, 1, normalised, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
