"""A table of embeddings without the rows that nobody looks up; callers go on sending the ids they know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from loopwright.compression.networks.network import TorchNetwork, call, tensors
from loopwright.compression.networks.schedule import one_of, own_copy, ties, tried, whole, within
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Array, Network
from loopwright.kernel.errors import BadInput

OTHERS = ("nearest", "mean")
"""What ids whose rows left come to, where no `unknown` id is named."""
LEAST = 1e-6
"""Of all look-ups: a smaller share names no row."""
_AT_ONCE = 1024
"""Rows that are compared with all that stay at a time."""


@dataclass(frozen=True, slots=True)
class TrimVocabulary:
    """Keep the rows of embedding tables whose ids occur at least `least` times in the training rows, at most the `most`
    frequent of them, of those only the frequent ones that make up `share` of all look-ups, and the rows of `special`
    ids and of padding.

    Other ids come to the row of the id `unknown`. When none is named they come, with `others` "nearest", to the row
    that stays whose direction is the most alike (cosine; never to a special id's or padding's), and with "mean" to a
    row of its own, the mean of the rows that left: better where those were never trained, so that likeness says
    nothing. Which row an id has is a table of integers inside the exported graph (one byte per old id, two when more
    than 256 rows stay, four when more than 32,768 do), so nothing changes for callers; ids beyond the old table fail
    as they did.

    embedding: the module's name; None: every table that an input is looked up in as it comes, where trimming saves
    bytes. A table tied to the output is refused: the model would answer with fewer classes.
    """

    name: ClassVar[str] = "trim-vocabulary"
    least: int = 1
    most: int | None = None
    share: float = 1.0
    special: Sequence[int] = ()
    unknown: int | None = None
    others: str = "nearest"
    embedding: str | None = None

    def __post_init__(self) -> None:
        whole(self.least, 1, 10**9, f"{self.name}: least")
        within(self.share, LEAST, 1, f"{self.name}: share")
        one_of(self.others, OTHERS, f"{self.name}: others")
        if self.most is not None:
            whole(self.most, 1, 10**9, f"{self.name}: most")
        for one in (*self.special, *([] if self.unknown is None else [self.unknown])):
            whole(one, 0, 10**9, f"{self.name}: special and unknown ids")
        object.__setattr__(self, "special", tuple(self.special))

    def reshape(self, network: Network, work: Work) -> Network:
        """A copy with smaller tables. Raises CannotExport where none can be trimmed, BadInput for ids outside the table
        and for weights that are no numbers.
        """
        trimmed = own_copy(network, self.name, work.threads)
        before = trimmed.answers(trimmed.example)
        tables = self._tables(trimmed)
        rows, kept, saved = 0, 0, 0
        for name, inputs in tables.items():
            table = trimmed.module.get_submodule(name)
            assert isinstance(table, nn.Embedding)
            smaller = self._trim(table, name, [work.samples.train.feeds[one] for one in inputs], work)
            spared = _bytes(table) - _bytes(smaller)
            if spared <= 0:
                continue
            rows, kept, saved = rows + table.num_embeddings, kept + smaller.num_embeddings, saved + spared
            owner, _, attribute = name.rpartition(".")
            setattr(trimmed.module.get_submodule(owner), attribute, smaller)
            strange = [~smaller.known(work.samples.validation.feeds[one]) for one in inputs]
            share = float(np.concatenate([one.ravel() for one in strange]).mean())
            work.notes.metrics({f"unknown_share.{name}": share})
        if not saved:
            raise CannotExport(
                "no table would be smaller without the ids that do not occur", where=self.name,
                got=", ".join(tables), wanted="a table of which many rows are never looked up",
                next="Keep fewer: raise `least` or set `most`.",
            )  # fmt: skip
        tried(trimmed, before, self.name)
        work.notes.metrics({"rows_before": rows, "rows": kept, "bytes_saved": saved})
        return trimmed

    def _tables(self, network: TorchNetwork) -> dict[str, list[str]]:
        """Name of each table to trim → the inputs that are looked up in it."""
        found = looked_up(network)
        if self.embedding is not None:
            if self.embedding not in found:
                raise CannotExport(
                    "no input is looked up in it as it comes", where=f"{self.name}: embedding", got=self.embedding,
                    wanted=", ".join(found) or "an nn.Embedding that gets an input of integers",
                )  # fmt: skip
            found = {self.embedding: found[self.embedding]}
        shared = {name for same in ties(network.module) for name in same}
        tied = [name for name in found if f"{name}.weight" in shared]
        if tied and len(tied) == len(found):
            raise CannotExport(
                "the table is tied to other weights", where=self.name, got=", ".join(tied),
                wanted="a table of its own", next="Untie it first, or leave the vocabulary as it is.",
            )  # fmt: skip
        if not found:
            raise CannotExport(
                "no input is looked up in a table as it comes", where=self.name,
                wanted="an nn.Embedding that gets an input of integers",
            )  # fmt: skip
        return {name: inputs for name, inputs in found.items() if name not in tied}

    def _trim(self, table: nn.Embedding, name: str, seen: list[Array], work: Work) -> "Trimmed":
        size = table.num_embeddings
        if table.max_norm is not None:
            raise CannotExport(
                "a table that changes while it is read", where=name, got="max_norm", wanted="None"
            )
        ids = np.concatenate([one.ravel() for one in seen])
        if ids.min() < 0 or ids.max() >= size:
            raise BadInput(
                "ids outside the table", where=f"{self.name}: {name}", got=f"{ids.min()} to {ids.max()}",
                wanted=f"0 to {size - 1}",
            )  # fmt: skip
        always = {*self.special, *([] if self.unknown is None else [self.unknown])}
        if wrong := sorted(one for one in always if not 0 <= one < size):
            raise BadInput(
                "special ids outside the table", where=self.name, got=wrong, wanted=f"0 to {size - 1}"
            )
        if table.padding_idx is not None:
            always.add(table.padding_idx)
        counts = np.bincount(ids, minlength=size)
        frequent = np.argsort(-counts, kind="stable")[: self.most]
        before = np.cumsum(counts[frequent]) - counts[frequent]  # look-ups of those more frequent
        enough = (counts[frequent] >= self.least) & (before < self.share * len(ids))
        keep = sorted(always | {int(one) for one in frequent[enough]})
        if self.unknown is not None:
            return Trimmed(table, keep, keep.index(self.unknown))
        if self.others == "mean":
            return Trimmed(table, keep)
        able = [place for place, one in enumerate(keep) if one not in always] or range(len(keep))
        return Trimmed(table, keep, _nearest(table.weight.detach(), keep, list(able), work))


class Trimmed(nn.Embedding):
    """Some rows of a table, found by the ids of the whole one.

    others: where in `keep` the ids come to that are not in it, one place for all or, in their order, one for each;
    None: to a row of their own, the mean of those that left.
    """

    row: Tensor

    def __init__(self, table: nn.Embedding, keep: list[int], others: int | Array | None = None) -> None:
        gone = np.setdiff1d(np.arange(table.num_embeddings), keep)
        weights = table.weight.detach()[keep]
        if others is None and len(gone):
            weights = torch.cat([weights, table.weight.detach()[gone].mean(0, keepdim=True)])
        padding = None if table.padding_idx is None else keep.index(table.padding_idx)
        super().__init__(len(weights), table.embedding_dim, padding, _weight=weights.clone())
        self.weight.requires_grad_(table.weight.requires_grad)
        self.keep = np.asarray(keep)
        row = np.empty(table.num_embeddings, dtype=np.int64)
        row[gone] = len(keep) if others is None else others
        row[keep] = np.arange(len(keep))
        kind = torch.uint8 if len(weights) <= 256 else torch.int16 if len(weights) <= 32768 else torch.int32
        self.register_buffer("row", torch.from_numpy(row).to(kind))
        self.train(table.training)

    def known(self, ids: Array) -> Array:
        """Which ids have a row of their own."""
        return np.isin(ids, self.keep)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(self.row[ids].to(torch.int64))


def _nearest(weights: Tensor, keep: list[int], able: list[int], work: Work) -> Array:
    """For each row of `weights` that is not in `keep`: the place in `keep`, one of `able`, with the largest cosine."""
    gone = np.setdiff1d(np.arange(len(weights)), keep)
    targets = nn.functional.normalize(weights[[keep[place] for place in able]], dim=1)
    found = [torch.empty(0, dtype=torch.int64)]
    for at in range(0, len(gone), _AT_ONCE):
        work.check_time()
        some = nn.functional.normalize(weights[gone[at : at + _AT_ONCE]], dim=1)
        found.append((some @ targets.T).argmax(1))
    nearest: Array = np.asarray(able)[torch.cat(found).numpy()]
    return nearest


def looked_up(network: TorchNetwork) -> dict[str, list[str]]:
    """Names of embedding tables that get inputs as they come → those inputs."""
    feeds = tensors(network.example)
    found: dict[str, list[str]] = {}
    tables = {name: one for name, one in network.module.named_modules() if type(one) is nn.Embedding}

    def watch(name: str, ids: Tensor) -> None:
        same = [
            one for one, values in feeds.items() if values.shape == ids.shape and bool((values == ids).all())
        ]
        if same:
            found.setdefault(name, same)

    hooks = [
        table.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))
        for name, table in tables.items()
    ]
    network.module.eval()
    try:
        with torch.inference_mode():
            call(network.module, feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _bytes(table: nn.Embedding) -> int:
    return sum(one.numel() * one.element_size() for one in (*table.parameters(), *table.buffers()))
