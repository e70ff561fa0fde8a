"""Quantization-aware training: what was rounded in training is what the artefact computes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from loopwright.compression.artefact import Artefact
from loopwright.compression.graphs.blockwise import Blockwise, to_blocks
from loopwright.compression.graphs.dynamic import Dynamic
from loopwright.compression.graphs.encoding import by_channel
from loopwright.compression.networks.folding import fold_norms
from loopwright.compression.networks.grids import Activations, Blocks, Channels
from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.networks.qat import QuantizationAware
from loopwright.compression.recipe import Cooked, Recipe, cook
from loopwright.compression.steps import CannotExport, Step, Work
from loopwright.compression.subject import Samples, Subject
from tests.unit.compression.example_networks import network_of

WorkOn = Callable[..., Work]


def answered(path: Path, feeds: Mapping[str, Any], optimised: bool = True) -> Any:
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
        None, dict(feeds)
    )[0]


def kernels(path: Path, folder: Path) -> set[str]:
    """The operators that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it says that the file suits this machine only
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def cooked(subject: Subject, work_on: WorkOn, *steps: Step) -> Cooked:
    return cook(Recipe("qat", steps), work_on(subject))


def probabilities(made: Cooked, feeds: Mapping[str, Any]) -> Any:
    assert isinstance(made.network, TorchNetwork)
    return torch.from_numpy(made.network.answers(feeds)).softmax(-1).numpy()


def integer_weights(path: Path) -> dict[tuple[int, ...], Any]:
    return {
        tuple(one.dims): numpy_helper.to_array(one)
        for one in onnx.load(str(path)).graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1
    }


def test_the_int8_artefact_computes_what_was_trained(
    digits_subject: Subject, digits: Samples, work_on: WorkOn, tmp_path: Path
) -> None:
    made = cooked(digits_subject, work_on, QuantizationAware(epochs=2))
    assert isinstance(made.network, TorchNetwork)
    assert made.graph.size < digits_subject.graph.size / 3.4
    feeds = digits.test.feeds
    wanted = probabilities(made, feeds)
    for optimised in (False, True):
        got = answered(made.graph.path, feeds, optimised)
        # A sum on the border between two integers may fall to either side; nothing else differs.
        assert np.abs(got - wanted).max() < 0.03 and np.abs(got - wanted).mean() < 2e-4
        assert (got.argmax(1) == wanted.argmax(1)).mean() > 0.995
    assert (got.argmax(1) == digits.test.y).mean() > 0.97
    stored = integer_weights(made.graph.path)
    layer = made.network.module.net[11]
    step = layer.parametrizations.weight.original.detach().abs().amax(1, keepdim=True) / 127
    assert np.array_equal(stored[64, 10], (layer.weight.detach() / step).round().T)
    assert len(stored) == 4 and all(np.abs(one).max() == 127 for one in stored.values())
    seen = kernels(made.graph.path, tmp_path)
    assert {"QLinearConv", "QGemm"} <= seen and not seen & {"Conv", "Gemm", "MatMul", "BatchNormalization"}


def test_static_ranges_go_around_every_product_of_a_transformer(
    encoder_subject: Subject, texts: Samples, work_on: WorkOn
) -> None:
    made = cooked(encoder_subject, work_on, QuantizationAware(epochs=1, alpha=0.5))
    assert made.graph.size < encoder_subject.graph.size / 2.2
    got, wanted = answered(made.graph.path, texts.test.feeds), probabilities(made, texts.test.feeds)
    assert np.abs(got - wanted).max() < 0.03 and (got.argmax(1) == wanted.argmax(1)).mean() > 0.99
    short = {name: values[:4, :7] for name, values in texts.test.feeds.items()}
    assert np.allclose(answered(made.graph.path, short), probabilities(made, short), atol=0.03)
    assert isinstance(encoder_subject.network, TorchNetwork)
    before = (encoder_subject.network.answers(texts.test).argmax(1) == texts.test.y).mean()
    assert (got.argmax(1) == texts.test.y).mean() > before - 0.03


def test_the_next_step_finds_the_4_bit_grid_that_was_trained_on(
    encoder_subject: Subject, texts: Samples, work_on: WorkOn
) -> None:
    encode = Blockwise(bits=4, compute="float32")
    made = cooked(encoder_subject, work_on, QuantizationAware(bits=4, epochs=1), encode)
    assert made.graph.size < encoder_subject.graph.size / 3
    got, wanted = answered(made.graph.path, texts.test.feeds), probabilities(made, texts.test.feeds)
    assert np.abs(got - wanted).max() < 1e-5
    plain = cooked(encoder_subject, work_on, encode)
    parent = answered(encoder_subject.graph.path, texts.test.feeds)
    assert np.abs(answered(plain.graph.path, texts.test.feeds) - parent).max() > 1e-3, (
        "rounding is not free here"
    )


def test_ranges_of_the_moment_are_those_of_the_dynamic_artefact(
    digits: Samples, work_on: Callable[..., Work]
) -> None:
    torch.manual_seed(0)
    network = network_of(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), digits)
    subject = SimpleNamespace(samples=digits, network=network, graph=None)
    recipe = Recipe("dynamic", (QuantizationAware(activations="dynamic", epochs=6, rate=1e-2), Dynamic()))
    made = cook(recipe, work_on(subject))
    assert made.graph.size < 4 * network.parameters() / 2.5
    got, wanted = answered(made.graph.path, digits.test.feeds), probabilities(made, digits.test.feeds)
    assert np.abs(got - wanted).max() < 0.02 and (got.argmax(1) == digits.test.y).mean() > 0.9


@pytest.mark.parametrize("symmetric", [False, True])
def test_rounding_twice_is_rounding_once_and_gradients_pass(symmetric: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 50, requires_grad=True)
    for grid in (Channels(), Blocks(4, 16, symmetric), Blocks(8, 32, symmetric)):
        near = grid(weight)
        assert torch.allclose(grid(near), near, atol=1e-6)
        values = near.detach().numpy()
        if isinstance(grid, Blocks):  # what the steps on graphs make of them
            again = to_blocks(values, grid.bits, grid.size, symmetric, search=True).values()
        else:
            whole, scale = by_channel(values, 0)
            again = whole * scale[:, None]
        assert np.allclose(again, values, atol=1e-6)
        assert (
            0 < float((near - weight).detach().abs().max()) < (0.6 if getattr(grid, "bits", 8) == 4 else 0.05)
        )
        (slope,) = torch.autograd.grad(near.sum(), weight)
        assert float((slope == 1).float().mean()) > 0.95, "straight through, but for what is clipped"


def test_learned_ranges_follow_their_gradient_and_zero_stays_exact() -> None:
    grid = Activations(learned=True)
    grid(torch.linspace(-1, 3, 100))
    grid.begin()
    optimiser = torch.optim.Adam([grid.scale, grid.zero], lr=1e-3)
    values = torch.linspace(-0.5, 1.5, 400)
    before = float((grid(values) - values).detach().square().mean())
    for _ in range(300):
        optimiser.zero_grad()
        loss = (grid(values) - values).square().mean()
        loss.backward()
        optimiser.step()
    grid.settle()
    after = grid.eval()(values)
    assert float((after - values).square().mean()) < 0.5 * before, (
        "a range half as wide has steps half as large"
    )
    assert float(grid(torch.zeros(1))) == 0.0 and not list(grid.parameters())


class Residual(nn.Module):
    """A convolution beside which its input passes: what comes out of it is added, not multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared, self.out = nn.BatchNorm2d(8), nn.Linear(8 * 64, 10)

    def forward(self, features: Tensor) -> Any:
        one = self.norm(self.first(features.reshape(-1, 1, 8, 8))).relu()
        two = self.second(one)
        # Read twice: what lies between the convolution and its norm must stay.
        return self.out((self.after(two) + self.shared(one) + two).relu().flatten(1))


def test_norms_are_folded_only_where_nothing_else_reads_what_lies_between(digits: Samples) -> None:
    torch.manual_seed(0)
    network = network_of(Residual(), digits)
    network.module.train()
    with torch.no_grad():
        for _ in range(5):
            network.module(torch.from_numpy(digits.train.feeds["features"][:200]))
    wanted = network.answers(digits.test)
    assert fold_norms(network) == ["norm"]
    assert isinstance(network.module.norm, nn.Identity) and network.module.first.bias is not None
    assert np.allclose(network.answers(digits.test), wanted, atol=1e-4)


def test_a_convolution_that_is_added_has_integers_behind_it_too(
    digits: Samples, digits_subject: Subject, work_on: WorkOn, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    residual = network_of(Residual(), digits)
    work = work_on(digits_subject)
    made = QuantizationAware(epochs=3, rate=5e-3, ranges="learned").reshape(residual, work)
    made.export(tmp_path / "residual.onnx")
    got = answered(tmp_path / "residual.onnx", digits.test.feeds)
    assert np.abs(got - torch.from_numpy(made.answers(digits.test)).softmax(-1).numpy()).max() < 0.03
    assert (got.argmax(1) == digits.test.y).mean() > 0.9
    assert "Conv" not in kernels(tmp_path / "residual.onnx", tmp_path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(60, 32), nn.Linear(32, 60, bias=False)
        self.out.weight = self.table.weight
        self.between = nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Any:
        return self.out(self.between(self.table(ids).mean(1)))


def test_tied_weights_and_named_layers_stay_as_they_are(
    digits: Samples, work_on: Callable[..., Work], tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(0, 60, (80, 5))
    rows = type(digits.train)({"ids": ids}, ids[:, 0])
    subject = SimpleNamespace(samples=Samples(rows, rows, rows, shared=1.0))
    tied = TorchNetwork(Tied(), {"ids": ids[:2]}, LOSSES["multiclass"])
    made = QuantizationAware(epochs=1).reshape(tied, work_on(subject))
    made.export(tmp_path / "tied.onnx")
    assert list(integer_weights(tmp_path / "tied.onnx")) == [(32, 32)]
    assert Artefact.open(tmp_path / "tied.onnx").parameters < 60 * 32 + 32 * 32 + 5 * 32
    assert np.allclose(answered(tmp_path / "tied.onnx", {"ids": ids}), made.answers({"ids": ids}), atol=0.02)
    with pytest.raises(CannotExport, match="no layer to train with rounding"):
        QuantizationAware(epochs=1, skip=("betw*",)).reshape(tied, work_on(subject))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        one = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(one, 1, enable_nested_tensor=False)
        self.out = nn.Linear(64, 10)

    def forward(self, features: Tensor) -> Any:
        return self.out(self.layers(features.reshape(-1, 8, 8)).flatten(1))


def test_attention_of_torch_is_rounded_as_linear_layers(
    digits: Samples, digits_subject: Subject, work_on: Callable[..., Work]
) -> None:
    torch.manual_seed(0)
    packed = network_of(Packed(), digits)
    made = QuantizationAware(epochs=3, rate=1e-2).reshape(packed, work_on(digits_subject))
    rounded = [
        name for name, one in made.module.named_modules() if parametrize.is_parametrized(one, "weight")
    ]
    assert len(rounded) == 7, "query, key, value, the way out of attention, two of the FFN, and the answers"
    assert (made.answers(digits.test).argmax(1) == digits.test.y).mean() > 0.5
    assert any(isinstance(one, nn.MultiheadAttention) for one in packed.module.modules()), (
        "the given one is left"
    )
