"""Rounding in training: values snap to the numbers that integers will stand for; gradients pass straight through
(Jacob et al. 2018; Bengio et al. 2013).
"""

from typing import Any

import torch
from torch import Tensor, nn

TOP = 255
"""Activations become unsigned 8-bit integers with a zero point."""
LARGEST = 127
"""Weights become signed 8-bit integers, symmetric."""
FOLLOW = 0.05
"""Share of a batch's range in the range that follows it."""
SMALLEST_HALF = 2.0**-14


class Channels(nn.Module):
    """Weights (outputs, …) as signed 8-bit integers with a scale per output: the largest becomes ±127."""

    def forward(self, weight: Tensor) -> Tensor:
        zero = torch.zeros(len(weight), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, self.scales(weight), zero, 0, -LARGEST, LARGEST)

    def scales(self, weight: Tensor) -> Tensor:
        """(outputs,), above 0."""
        top = weight.detach().flatten(1).abs().amax(1) / LARGEST
        return torch.where(top > 0, top, torch.ones_like(top))


class Blocks(nn.Module):
    """Weights (outputs, …) as 4- or 8-bit integers with a scale and a zero point per `size` numbers of a row.

    The grid of the graph step `weights`: scales as float16 holds them; rows filled up with zeros. What was rounded once
    is not changed by rounding it again: so the step finds the same integers.
    """

    def __init__(self, bits: int, size: int, symmetric: bool) -> None:
        super().__init__()
        self.bits, self.size, self.symmetric = bits, size, symmetric

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        filled = nn.functional.pad(rows, (0, -rows.shape[1] % self.size))
        blocks = filled.reshape(-1, self.size)
        scale, zero = self.grid(blocks.detach())
        near = torch.fake_quantize_per_channel_affine(blocks, scale, zero, 0, 0, 2**self.bits - 1)
        return near.reshape(filled.shape)[:, : rows.shape[1]].reshape(weight.shape)

    def grid(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points of blocks (n, size). A symmetric block's outermost number is the integer 0."""
        top = 2**self.bits - 1
        low, high = blocks.amin(1).clamp_max(0), blocks.amax(1).clamp_min(0)
        outer = torch.where(-low >= high, low, high)
        scale = outer / -(2 ** (self.bits - 1)) if self.symmetric else (high - low) / top
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        half = scale.half()
        if not self.symmetric:
            # Never wider than the block: then its ends are the first and the last integer, and give this scale again.
            half = torch.where(half.float() > scale, half.view(torch.int16) - 1, half.view(torch.int16)).view(
                torch.half
            )
        near = half.float()
        scale = torch.where((near.abs() >= SMALLEST_HALF) & near.isfinite(), near, scale)
        if self.symmetric:
            return scale, torch.full_like(scale, 2 ** (self.bits - 1), dtype=torch.int32)
        return scale, (-low / scale).round().clamp(0, top).to(torch.int32)


class Activations(nn.Module):
    """Numbers that come into, or out of, a layer as unsigned 8-bit integers with one scale and zero point.

    It first watches, passing values on; `begin` makes a grid of what it saw. Then the range follows the batches, or is
    learned with its gradient (LSQ+, Bhalgat et al. 2020), until `settle`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.learned, self.watching, self.settled = learned, True, False
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))

    def forward(self, values: Tensor) -> Tensor:
        if self.watching:
            self._meet(values, 1.0)
            return values
        if self.learned and not self.settled:
            factor = (values.numel() * TOP) ** -0.5
            made: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
                values, self.scale, self.zero, 0, TOP, factor
            )
            return made
        if self.training and not self.settled:
            self._meet(values, FOLLOW)
        scale, zero = self.grid()
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, TOP)

    def grid(self) -> tuple[float, int]:
        """Scale and zero point; zero itself is always on the grid."""
        low, high = min(0.0, float(self.low)), max(0.0, float(self.high))
        scale = (high - low) / TOP or 1.0
        return scale, min(TOP, max(0, round(-low / scale)))

    def begin(self) -> None:
        """Round from now on."""
        self.watching = False
        if self.learned:
            scale, zero = self.grid()
            self.scale = nn.Parameter(torch.tensor([scale]))
            self.zero = nn.Parameter(torch.tensor([float(zero)]))

    def settle(self) -> None:
        """Keep the range as it now is."""
        if self.settled or self.watching:
            return
        self.settled = True
        if self.learned:
            scale = max(float(self.scale.detach()), 1e-8)
            zero = min(TOP, max(0, round(float(self.zero.detach()))))
            del self.scale, self.zero
            self.low, self.high = torch.tensor([-zero * scale]), torch.tensor([(TOP - zero) * scale])

    def before(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """As a hook: round what comes in."""
        return (self(given[0]), *given[1:])

    def after(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """As a hook: round what comes out."""
        made: Tensor = self(output)
        return made

    def _meet(self, values: Tensor, share: float) -> None:
        with torch.no_grad():
            low, high = values.detach().amin().reshape(1), values.detach().amax().reshape(1)
            if share == 1.0:
                self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            else:
                self.low, self.high = self.low.lerp(low, share), self.high.lerp(high, share)


class Momentary(nn.Module):
    """The same with the range of the batch at hand, as ONNX's DynamicQuantizeLinear takes it."""

    def forward(self, values: Tensor) -> Tensor:
        low, high = values.detach().amin().clamp_max(0), values.detach().amax().clamp_min(0)
        scale = (high - low) / TOP
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = (-low / scale).round().clamp(0, TOP).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, TOP)

    def before(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """As a hook: round what comes in."""
        return (self(given[0]), *given[1:])
