"""Layers that hold integers and are written as ONNX's QuantizeLinear and DequantizeLinear; only for export."""

from typing import Any

import torch
from torch import Tensor, nn

from loopwright.compression.networks.grids import LARGEST, Activations, Channels

OPSET = 18


class Rounded(nn.Module):
    """QuantizeLinear and DequantizeLinear with one scale and zero point."""

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: Activations) -> None:
        super().__init__()
        scale, zero = grid.grid()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(zero, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        whole = _onnx("QuantizeLinear", (values, self.scale, self.zero), torch.uint8, values.shape)
        return _onnx("DequantizeLinear", (whole, self.scale, self.zero), torch.float32, values.shape)


class Product(nn.Module):
    """A convolution or a linear layer whose weight is int8 with a scale per output and whose bias is int32."""

    whole: Tensor
    scale: Tensor
    zero: Tensor
    step: Tensor
    bias: Tensor | None
    whole_bias: Tensor | None

    def __init__(
        self, layer: nn.Module, weight: Tensor, before: Activations, after: Activations | None
    ) -> None:
        super().__init__()
        # Held for how it pads and strides; not as a part, for its weight must not be exported.
        self.convolve: Any = getattr(layer, "_conv_forward", None)
        self.linear = isinstance(layer, nn.Linear)
        scale = Channels().scales(weight)
        whole = integers(weight, scale)
        # MatMul takes (inputs, outputs): turned here, no Transpose comes between the integers and their use.
        self.register_buffer("whole", whole.T.contiguous() if self.linear else whole)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int8))
        self.before, self.after = Rounded(before), None if after is None else Rounded(after)
        step, limits = scale * self.before.scale, torch.iinfo(torch.int32)
        given = layer.bias
        bias = given.detach().clone() if isinstance(given, Tensor) else None
        rounded = None
        if bias is not None:
            rounded = (bias.double() / step).round().clamp(limits.min, limits.max).to(torch.int32)
        self.register_buffer("bias", bias)
        self.register_buffer("whole_bias", rounded)
        self.register_buffer("step", step)

    def forward(self, values: Tensor) -> Tensor:
        given = self.before(values)
        axis = {"axis": 1 if self.linear else 0}
        weight = _onnx(
            "DequantizeLinear", (self.whole, self.scale, self.zero), torch.float32, self.whole.shape, axis
        )
        bias = self.bias
        if self.whole_bias is not None and (not self.linear or given.dim() == 2):
            # Products without a rest of floats: ONNX Runtime fuses them whole.
            parts = (self.whole_bias, self.step)
            bias = _onnx("DequantizeLinear", parts, torch.float32, self.whole_bias.shape, {"axis": 0})
        made: Tensor
        if not self.linear:
            made = self.convolve(given, weight, bias)
        elif bias is None:
            made = given @ weight
        else:
            made = torch.addmm(bias, given, weight) if given.dim() == 2 else given @ weight + bias
        return made if self.after is None else self.after(made)


class Table(nn.Module):
    """A look-up table of int8 with a scale per row; rows are scaled after the look-up."""

    whole: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = Channels().scales(weight)
        self.register_buffer("whole", integers(weight, scale))
        self.register_buffer("scale", scale[:, None])

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.embedding(rows, self.whole).float() * nn.functional.embedding(rows, self.scale)


def integers(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 of the weight's shape: weight ≈ integers × scale, a scale per place on axis 0."""
    steps = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.detach() / steps).round().clamp(-LARGEST, LARGEST).to(torch.int8)


def _onnx(
    kind: str,
    given: tuple[Tensor, ...],
    dtype: torch.dtype,
    shape: Any,
    settings: dict[str, Any] | None = None,
) -> Tensor:
    made: Tensor = torch.onnx.ops.symbolic(
        kind, given, attrs=settings or {}, dtype=dtype, shape=shape, version=OPSET
    )
    return made
