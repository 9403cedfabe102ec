"""Plain rounding to the nearest level, as a reference that needs no tool: what symmetry and zero points do to zeros."""

from typing import Any

import torch
from torch import Tensor, nn

SYMMETRIC, INTEGER, FLOAT = "symmetric", "asymmetric, integer zero point", "asymmetric, float offset"


class RoundedLinear(nn.Module):
    """A linear layer whose weight is kept as codes: the value of a code is `(code - zero) * scale`.

    Args:
        linear: Layer to replace.
        bits: 8, or 4, which are packed in pairs.
        zero: How the code that stands for the value zero is chosen.
        group: Values along the input that share a scale; None: a whole row.
    """

    def __init__(self, linear: nn.Linear, bits: int, zero: str, group: int | None = None) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.shape, self.bits, self.bias = weight.shape, bits, linear.bias
        groups = weight.float().reshape(weight.shape[0], -1, group or weight.shape[1])
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        top = 2**bits - 1
        if zero == SYMMETRIC:
            scale = torch.maximum(-low, high) / (top // 2)
            zeros = torch.full_like(scale, top // 2 + 1)
        else:
            if zero == INTEGER:  # zero must be among the values for a code to stand for it
                low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low) / top
            zeros = -low / scale.clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale.to(weight.dtype)
        kept = zeros.round().to(torch.uint8) if zero == INTEGER else zeros.to(weight.dtype)
        divisor = scale.float().clamp(min=torch.finfo(torch.float32).tiny)
        codes = (groups / divisor + kept.float()).round().clamp(0, top).to(torch.uint8).flatten()
        self.register_buffer("codes", codes if bits == 8 else codes[::2] | codes[1::2] << 4)
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", kept, persistent=zero != SYMMETRIC)  # of symmetric levels it is known

    def weight(self) -> Tensor:
        """The dequantized weight, `(out, in)`."""
        codes: Any = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1)
        groups = codes.reshape(*self.scale.shape[:2], -1)
        values = (groups.float() - self.zeros.float()) * self.scale.float()
        return values.reshape(self.shape).to(self.scale.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight(), self.bias)


def round_layers(model: nn.Module, names: list[str], bits: int, zero: str, group: int | None = None) -> nn.Module:
    """Replaces linear layers of a model by rounded ones.

    Args:
        model: Model to change.
        names: Module paths of the layers.
        bits: As for `RoundedLinear`.
        zero: As for `RoundedLinear`.
        group: As for `RoundedLinear`.
    """
    for name in names:
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, RoundedLinear(linear, bits, zero, group))
    return model
