"""Small networks with the rows they were made for. Imports torch: fixtures import it when they are asked for."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.subject import Rows, Samples

VOCABULARY, USED, LENGTH, KINDS = 160, 90, 16, 3
"""Tokens 2 … USED - 1 occur in texts, 0 pads, 1 opens; the rest of the table is never looked up."""


class DigitsCnn(nn.Module):
    """64 pixels → 10 logits; two convolutions with batch norm, 38 thousand weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Any:
        return self.net(features)


class Block(nn.Module):
    """Attention and FFN, each behind a LayerNorm and beside a residual."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.before_attention, self.before_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)

    def forward(self, hidden: Tensor, hidden_mask: Tensor) -> Tensor:
        seen = self.before_attention(hidden)
        query, key, value = (
            self.split(self.query(seen)),
            self.split(self.key(seen)),
            self.split(self.value(seen)),
        )
        scores = query @ key.transpose(-1, -2) / self.head_width**0.5 + hidden_mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + self.mix(mixed)
        return hidden + self.down(nn.functional.gelu(self.up(self.before_ffn(hidden))))


class Encoder(nn.Module):
    """`input_ids` and `attention_mask`, each (n, tokens), → 3 logits: the mean of the unmasked tokens, classified."""

    def __init__(self, layers: int = 4, width: int = 32, heads: int = 4, inner: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH * 2, width)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self.last, self.classify = nn.LayerNorm(width), nn.Linear(width, KINDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.tokens(input_ids) + self.places(places)
        hidden_mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e4
        for block in self.blocks:
            hidden = block(hidden, hidden_mask)
        counted = attention_mask[:, :, None].to(hidden.dtype)
        return self.classify((self.last(hidden) * counted).sum(1) / counted.sum(1))


def digits_samples() -> Samples:
    """scikit-learn's digits, pixels of 0 to 1 as `features`: 1,100 rows teach, 300 choose, 397 report."""
    data = load_digits()
    pixels, digits = (data.data / 16).astype(np.float32), data.target
    order = np.random.default_rng(0).permutation(len(digits))

    def rows(first: int, end: int) -> Rows:
        return Rows({"features": pixels[order[first:end]]}, digits[order[first:end]])

    return Samples(rows(0, 1100), rows(1100, 1400), rows(1400, len(digits)))


def texts_samples() -> Samples:
    """Rows of 3 to 15 tokens behind an opening one, padded to 16; the truth is the most frequent kind of token."""
    draw = np.random.default_rng(3)

    def rows(count: int) -> Rows:
        lengths = draw.integers(3, LENGTH, count)
        mask = np.arange(LENGTH)[None, :] <= lengths[:, None]
        favourite = draw.integers(0, KINDS, (count, 1))
        kind = np.where(
            draw.random((count, LENGTH)) < 0.5, favourite, draw.integers(0, KINDS, (count, LENGTH))
        )
        ids = 2 + kind + KINDS * draw.integers(0, (USED - 2) // KINDS, (count, LENGTH))
        ids[:, 0] = 1
        words = mask & (np.arange(LENGTH) > 0)
        votes = np.stack([((kind == one) & words).sum(1) for one in range(KINDS)], axis=1)
        feeds = {
            "input_ids": np.where(mask, ids, 0).astype(np.int64),
            "attention_mask": mask.astype(np.int64),
        }
        return Rows(feeds, votes.argmax(1))

    return Samples(rows(900), rows(250), rows(250))


def network_of(module: nn.Module, samples: Samples, **rest: Any) -> TorchNetwork:
    """`module` with two rows to trace with, a softmax behind it in the exported graph."""
    example = {name: values[:2] for name, values in samples.train.feeds.items()}
    return TorchNetwork(module, example, LOSSES["multiclass"], head=nn.Softmax(-1), **rest)
