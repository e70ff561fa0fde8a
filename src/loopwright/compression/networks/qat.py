"""Quantization-aware training: train with the rounding of the integers to come, then export onto the same integers.

Decision 0047 says why this is not torchao's or torch.ao's.
"""

import copy
import fnmatch
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from loopwright.compression.graphs.blockwise import BLOCKS, SMALLEST, fitting_size
from loopwright.compression.networks.distilling import check_softness, teaching
from loopwright.compression.networks.fitting import Training, fit
from loopwright.compression.networks.folding import flow, fold_norms, leads_only_to, own_layers
from loopwright.compression.networks.grids import Activations, Blocks, Channels, Momentary
from loopwright.compression.networks.heads import take_apart
from loopwright.compression.networks.integers import Product, Table
from loopwright.compression.networks.network import TorchNetwork, torch_network
from loopwright.compression.recipe import without_module
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Network
from loopwright.kernel.errors import BadInput

ACTIVATIONS = ("static", "dynamic", "none")
RANGES = ("observed", "learned")
Convolution = nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class QuantizationAware:
    """Train linear layers, convolutions and look-up tables with weights (and activations) rounded as they will be.

    bits 8, activations "static" (the default): weights per output channel, unsigned activations per tensor. The
    exported graph already is INT8, with the very ranges that were trained with; no step on graphs follows.
    bits 8, activations "dynamic": the same weights, activations by the range of each batch; `int8-dynamic` follows.
    bits 4 or 8, activations "none": weights in blocks of `block_size`; `weights` with the same settings follows.
    ranges: "observed" follow the batches during the first half of the training; "learned" have a gradient of their own
    (LSQ+). alpha, temperature: as in `distil`; 0 learns from the truth alone. skip: names of layers (* and ? stand for
    letters) that stay as they are. Batch norms are multiplied into the layer before first.
    `nn.MultiheadAttention` is taken apart into linear layers first.
    The control is the same training without rounding: `finetune`, then `int8-static`, `int8-dynamic` or `weights`.
    """

    name: ClassVar[str] = "qat"

    bits: int = 8
    activations: str = ""
    epochs: int = 3
    rate: float = 2e-4
    batch: int = 64
    decay: float = 0.0
    rows: int | None = None
    ranges: str = "observed"
    block_size: int = 32
    symmetric: bool = False
    alpha: float = 0.0
    temperature: float = 2.0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))
        object.__setattr__(self, "activations", self.activations or ("static" if self.bits == 8 else "none"))
        _ = self.training
        check_softness(self.temperature, self.alpha, "qat")
        if any(not isinstance(one, str) for one in self.skip):
            raise BadInput("names of layers", where="qat.skip", got=self.skip, wanted="a list of names")
        choices: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
            ("bits", self.bits, (4, 8)), ("activations", self.activations, ACTIVATIONS),
            ("ranges", self.ranges, RANGES), ("block_size", self.block_size, BLOCKS),
        )  # fmt: skip
        for setting, value, known in choices:
            if value not in known:
                raise BadInput(
                    "not among the choices",
                    where=f"qat.{setting}",
                    got=value,
                    wanted=", ".join(map(str, known)),
                )
        if self.bits == 4 and self.activations != "none":
            raise BadInput(
                "4-bit weights go with activations as they are", where="qat.activations", got=self.activations,
                wanted="none",
            )  # fmt: skip

    @property
    def training(self) -> Training:
        return Training(self.epochs, self.rate, self.batch, decay=self.decay, rows=self.rows)

    @property
    def file_bits(self) -> float:
        """Of most weights in the exported file; what is not written as integers here is by the step that follows."""
        return 8.0 if self.activations == "static" else 32.0

    def reshape(self, network: Network, work: Work) -> "QuantizedNetwork":
        """A copy that rounds as the artefact will, trained; its loss is noted as `qat_loss`.

        Raises CannotExport where there is no layer to quantize.
        """
        made = torch_network(network).copy()
        made.check()
        take_apart(made.module)
        folded = fold_norms(made)
        grids = self._round(made, work)
        if grids:
            rows = work.samples.calibration(work.seed)
            made.answers(rows, self.batch)
        for grid in grids:
            grid.begin()
        quantized = QuantizedNetwork(**{name: getattr(made, name) for name in made.__dataclass_fields__})
        quantized = replace(quantized, integers=self.activations == "static")
        self._train(quantized, grids, work)
        for grid in grids:
            grid.settle()
        work.notes.params(
            {"qat_bits": self.bits, "qat_activations": self.activations, "norms_folded": len(folded),
             "activation_ranges": len(grids)}
        )  # fmt: skip
        return quantized

    def _round(self, network: TorchNetwork, work: Work) -> list[Activations]:
        """Put the rounding into the layers; the grids of activations, which have seen nothing yet."""
        seen = flow(network.module, network.example)
        smallest = SMALLEST if self.activations == "none" else 0
        layers = {
            name: layer
            for name, layer in own_layers(network.module, seen).items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip)
            and _weight(layer).numel() >= smallest
            and not (self.activations == "dynamic" and isinstance(layer, Convolution))
        }
        if not layers:
            raise CannotExport(
                "there is no layer to train with rounding", where="qat",
                wanted="a Linear, Conv1d, Conv2d or Embedding whose weight no other layer shares",
                next="Quantize the graph instead: int8-static, int8-dynamic or weights.",
            )  # fmt: skip
        goal = {id(_weight(one)): one for one in layers.values() if not isinstance(one, nn.Embedding)}
        ending = {
            name
            for name, one in layers.items()
            if isinstance(one, Convolution) and not leads_only_to(seen, one, goal)
        }
        grids: list[Activations] = []

        def watching() -> Activations:
            grids.append(Activations(self.ranges == "learned"))
            return grids[-1]

        for name, layer in layers.items():
            if self.activations != "none" and not isinstance(layer, nn.Embedding):
                layer.rounding = watching() if self.activations == "static" else Momentary()
                layer.register_forward_pre_hook(layer.rounding.before)
            if self.activations == "static" and name in ending:
                # Without integers on both sides, ONNX Runtime computes a convolution on floats.
                layer.rounding_after = watching()
                layer.register_forward_hook(layer.rounding_after.after)
            weights: nn.Module = Channels()
            if self.activations == "none":
                size = fitting_size(_weight(layer).flatten(1).shape[1], self.bits, self.block_size)
                weights = Blocks(self.bits, size, self.symmetric)
            parametrize.register_parametrization(layer, "weight", weights)
        whole = sum(one.numel() for one in network.module.parameters())
        rounded = sum(_weight(one).numel() for one in layers.values())
        work.notes.metrics({"quantized_layers": len(layers), "quantized_share": rounded / whole})
        return grids

    def _train(self, network: TorchNetwork, grids: list[Activations], work: Work) -> None:
        loss = None
        if self.alpha:
            if work.subject.network is None:
                raise without_module(self.name)
            loss = teaching(
                network, torch_network(work.subject.network), work, temperature=self.temperature, alpha=self.alpha,
                rows=self.rows,
            )  # fmt: skip
        total = min(len(work.samples.train), self.rows or len(work.samples.train))
        half = max(1, self.epochs * -(-total // self.batch) // 2)
        done = 0

        def after_step() -> None:
            nonlocal done
            done += 1
            if done == half and self.ranges == "observed":
                for grid in grids:
                    grid.settle()

        fit(
            network, work.samples.train, work, self.training, label="qat", loss_of=loss, after_step=after_step
        )


@dataclass(frozen=True)
class QuantizedNetwork(TorchNetwork):
    """A network whose module rounds. `integers`: whether its export holds integers; else snapped float32 weights."""

    integers: bool = False

    def export(self, path: Path) -> None:
        """As `TorchNetwork.export`: with QuantizeLinear and DequantizeLinear around int8 weights, or with weights that
        lie on the grid that the next step finds again.
        """
        self.check()
        plain = copy.deepcopy(self.module)
        for name, layer in list(plain.named_modules()):
            if not parametrize.is_parametrized(layer, "weight"):
                continue
            before, after = getattr(layer, "rounding", None), getattr(layer, "rounding_after", None)
            snapped, weight = _bare(layer)
            if not self.integers:
                layer.weight = nn.Parameter(snapped)
                continue
            made: nn.Module
            if isinstance(layer, nn.Embedding):
                made = Table(weight)
            else:
                assert isinstance(before, Activations)
                made = Product(layer, weight, before, after)
            if not name:
                plain = made
            else:
                plain.set_submodule(name, made)
        TorchNetwork(plain, self.example, self.loss, self.variable, self.head, self.output).export(path)


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _bare(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Take rounding and weight off a copied layer: the weight as it rounds, and as it was trained.

    A copy shares the class that `parametrize` made with its original: torch's own removal would break that one.
    """
    snapped, weight = _weight(layer).detach(), layer.parametrizations.weight.original.detach()  # type: ignore[union-attr,operator]
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer._forward_pre_hooks.clear()
    layer._forward_hooks.clear()
    for part in ("rounding", "rounding_after"):
        if hasattr(layer, part):
            delattr(layer, part)
    return snapped, weight
