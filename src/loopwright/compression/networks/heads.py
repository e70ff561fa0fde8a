"""Attention by heads: which module holds the count of heads, and torch's packed attention taken apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from loopwright.compression.steps import CannotExport
from loopwright.kernel.errors import BadInput

ATTRIBUTES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""Where modules keep how many heads they have, when nobody says otherwise."""
WIDTHS = ("all_head_size", "inner_dim", "attention_width")
"""Where modules keep heads · width of one head: written down anew when heads go."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The module `name` keeps its count of heads in `attribute`."""

    name: str
    attribute: str
    count: int

    def lower(self, module: nn.Module, count: int) -> None:
        """Write `count` down in the module, and what follows from it."""
        attention = module.get_submodule(self.name)
        for other in WIDTHS:
            width = getattr(attention, other, None)
            if isinstance(width, int) and width % self.count == 0:
                setattr(attention, other, width // self.count * count)
        setattr(attention, self.attribute, count)


def said_heads(said: Any) -> dict[str, str]:
    """`heads` as {pattern of module names: attribute}; raises BadInput for anything else."""
    if not isinstance(said, Mapping) or not all(isinstance(one, str) for one in (*said, *said.values())):
        raise BadInput(
            "not names with their attributes", where="prune-structure: heads", got=repr(said),
            wanted="{NAME OF A MODULE: ATTRIBUTE}",
        )  # fmt: skip
    return dict(said)


def check_said(module: nn.Module, said: Mapping[str, str]) -> None:
    """Raise BadInput where a pattern of `heads` names no module, or none that has such a count."""
    for pattern, attribute in said.items():
        found = [(name, one) for name, one in module.named_modules() if fnmatchcase(name, pattern)]
        if not found:
            raise BadInput(
                "no module has this name", where="prune-structure: heads", got=pattern,
                wanted=", ".join([name for name, _ in module.named_modules() if name][:12]),
            )  # fmt: skip
        if not any(_count(one, attribute) for _, one in found):
            name, one = found[0]
            raise BadInput(
                "not a count of heads", where=f"prune-structure: heads: {name}.{attribute}",
                got=repr(getattr(one, attribute, None)), wanted="a whole number above 0",
            )  # fmt: skip


def counted(module: nn.Module, layers: Sequence[str], said: Mapping[str, str]) -> Counted | None:
    """The innermost module around all of `layers` that counts heads: by `said` (pattern of names → attribute), else by
    one of the usual attributes. None where there is none.
    """
    parts = [name.split(".")[:-1] for name in layers]
    common = parts[0]
    for other in parts[1:]:
        same = [a == b for a, b in zip(common, other, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    for depth in range(len(common), -1, -1):
        name = ".".join(common[:depth])
        holder = module.get_submodule(name)
        for pattern, attribute in said.items():
            if fnmatchcase(name, pattern) and (count := _count(holder, attribute)):
                return Counted(name, attribute, count)
        for attribute in ATTRIBUTES:
            if count := _count(holder, attribute):
                return Counted(name, attribute, count)
    return None


def _count(module: nn.Module, attribute: str) -> int:
    count = getattr(module, attribute, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0


class Attention(nn.Module):
    """What `nn.MultiheadAttention` computes, with a layer of its own for query, key, value and output.

    Takes the same arguments for batched inputs; a mask per head is not taken, since heads may go.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        if packed.bias_k is not None or packed.add_zero_attn:
            raise CannotExport(
                "attention with an extra key cannot be taken apart", where="nn.MultiheadAttention",
                wanted="add_bias_kv=False and add_zero_attn=False",
            )  # fmt: skip
        width, bias = packed.embed_dim, packed.in_proj_bias is not None
        self.num_heads, self.head_dim, self.dropout = packed.num_heads, packed.head_dim, packed.dropout
        self.batch_first = packed.batch_first
        # nn.TransformerEncoderLayer looks at these before it calls; so it takes no short cut past this module.
        self.in_proj_bias, self._qkv_same_embed_dim, self.embed_dim = None, False, width
        self.query = nn.Linear(width, width, bias)
        self.key = nn.Linear(packed.kdim or width, width, bias)
        self.value = nn.Linear(packed.vdim or width, width, bias)
        self.out_proj = nn.Linear(width, width, bias)
        layers = self.query, self.key, self.value
        apart = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        with torch.no_grad():
            together = packed.in_proj_weight.chunk(3) if packed._qkv_same_embed_dim else apart
            for layer, weights in zip(layers, together, strict=True):
                layer.weight.copy_(weights)
            self.out_proj.weight.copy_(packed.out_proj.weight)
            if bias:
                for layer, weights in zip(layers, packed.in_proj_bias.chunk(3), strict=True):
                    layer.bias.copy_(weights)
                self.out_proj.bias.copy_(packed.out_proj.bias)
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.dim() != 3 or (attn_mask is not None and attn_mask.dim() != 2):
            raise ValueError("wanted inputs (n, length, width) and a mask that is the same for all heads")
        if not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        queries, keys, values = (
            layer(one).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, one in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(self.head_dim)
        if attn_mask is not None:
            scores = scores + _added(attn_mask, scores)
        if key_padding_mask is not None:
            scores = scores + _added(key_padding_mask, scores)[:, None, None, :]
        shares = scores.softmax(-1)
        dropped = nn.functional.dropout(shares, self.dropout, self.training)
        answers = self.out_proj((dropped @ values).transpose(1, 2).flatten(2))
        if not self.batch_first:
            answers = answers.transpose(0, 1)
        if not need_weights:
            return answers, None
        return answers, shares.mean(1) if average_attn_weights else shares


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask as torch takes it, True for what may not be seen, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))


def take_apart(module: nn.Module) -> int:
    """Put an `Attention` in place of each `nn.MultiheadAttention` within `module`; returns how many.

    Raises CannotExport for one with extra keys.
    """
    packed = [name for name, one in module.named_modules() if isinstance(one, nn.MultiheadAttention)]
    for name in packed:
        owner, _, attribute = name.rpartition(".")
        inner = module.get_submodule(name)
        assert isinstance(inner, nn.MultiheadAttention)
        setattr(module.get_submodule(owner), attribute, Attention(inner))
    if packed:
        for one in module.modules():
            if isinstance(one, nn.TransformerEncoder):
                one.use_nested_tensor = one.enable_nested_tensor = False
    return len(packed)
