"""Mixed precision: which numbers a step computes in, and the scale that keeps small gradients in float16."""

from collections.abc import Mapping
from typing import Any

import torch

from splip.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LEAST = 2.0**-14  # scale of a loss: whose gradients overflow here are not a matter of scale


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in the precision's numbers; for fp32 nothing."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES)


class Scaler:
    """The loss times a number that follows the gradients: float16 loses what is below 6e-8 and above 65504.

    Without fp16 it changes nothing.

    Args:
        precision: of the run.
        device: of this process.

    Raises:
        UserError: this version of torch cannot scale on this device.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.on = precision == "fp16"
        make = getattr(torch.amp, "GradScaler", None)
        if self.on and make is None:
            raise UserError(f"precision fp16 needs a newer torch than {torch.__version__}; bf16 and fp32 do not")
        self._scaler = make(device.type, enabled=self.on) if make is not None else None
        self.skipped = 0  # steps

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return self._scaler.scale(loss) if self.on and self._scaler is not None else loss

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Gradients as they are, so that their norm can be limited."""
        if self.on and self._scaler is not None:
            self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> str | None:
        """The optimiser's step, unless a gradient overflowed: then what to say about it.

        Raises:
            UserError: gradients overflow at any scale.
        """
        if not self.on or self._scaler is None:
            optimiser.step()
            return None
        before = self._scaler.get_scale()
        self._scaler.step(optimiser)
        self._scaler.update()
        now = self._scaler.get_scale()
        if now >= before:
            return None
        self.skipped += 1
        if now < LEAST:
            raise UserError(
                f"precision fp16: gradients overflow even with the loss scaled by {before:g}; try bf16 or fp32"
            )
        return f"skipped, a gradient overflowed in float16; the loss is scaled by {now:g} from now on"

    def state(self) -> dict[str, Any]:
        """For last.safetensors."""
        if not self.on or self._scaler is None:
            return {}
        found = self._scaler.state_dict()
        return {"scaler": {"scale": float(found["scale"]), "growth_tracker": int(found["_growth_tracker"])}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the scale of a stopped run.

        Raises:
            KeyError, TypeError, ValueError: what was saved is none.
        """
        if self.on and self._scaler is not None:
            kept = state["scaler"]
            scale, tracker = float(kept["scale"]), int(kept["growth_tracker"])
            if not 0 < scale < float("inf") or tracker < 0:
                raise ValueError(f"a loss scaled by {scale:g}")
            whole = self._scaler.state_dict()
            self._scaler.load_state_dict({**whole, "scale": scale, "_growth_tracker": tracker})
