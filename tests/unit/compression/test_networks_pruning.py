"""Weights that become zero, and channels, heads and units that leave."""

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

from loopwright.compression.artefact import Artefact
from loopwright.compression.networks.magnitude import PruneWeights, prunable
from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.networks.schedule import cubic
from loopwright.compression.networks.structured import PruneStructure
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, OutOfTime, Work, step
from loopwright.compression.subject import Rows, Samples, Subject
from loopwright.kernel.errors import BadInput
from tests.unit.compression.example_networks import Encoder, network_of

pytestmark = pytest.mark.unit

WorkOn = Callable[..., Work]


class Noted:
    """Keeps what steps note."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.seen: dict[str, list[float]] = {}

    def params(self, values: Mapping[str, Any]) -> None:
        self.said |= {name.rpartition("/")[2]: value for name, value in values.items()}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.seen.setdefault(name.rpartition("/")[2], []).append(value)


def around(module: nn.Module, *shape: int, variable: Any = None) -> TorchNetwork:
    """`module` as a network of three outputs, its example drawn from noise."""
    features = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    return TorchNetwork(module.eval(), {"features": features}, LOSSES["multiclass"], variable=variable or {})


def rows_for(network: TorchNetwork, count: int = 60) -> Samples:
    shape = network.example["features"].shape[1:]
    draw = np.random.default_rng(5)

    def rows() -> Rows:
        return Rows(
            {"features": draw.standard_normal((count, *shape)).astype(np.float32)}, draw.integers(0, 3, count)
        )

    return Samples(rows(), rows(), rows())


@pytest.fixture
def work_for(tmp_path: Path) -> Callable[..., Work]:
    """work_for(network) → work on noise; these networks are looked at, not measured."""

    def made(network: TorchNetwork, samples: Samples | None = None, **rest: Any) -> Work:
        subject = SimpleNamespace(samples=samples or rows_for(network))
        return Work(subject, tmp_path, tmp_path, **rest)  # type: ignore[arg-type]  # there is no graph

    return made


def only(**settings: Any) -> PruneStructure:
    """One round without training, so that what leaves can be reckoned by hand."""
    return PruneStructure(**{"rounds": 1, "epochs": 0, "multiple": 1, **settings})


def accuracy(network: TorchNetwork, rows: Rows) -> float:
    return float((network.answers(rows).argmax(1) == rows.y).mean())


def asked(graph: Artefact, feeds: Mapping[str, Any]) -> Any:
    session = ort.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


# --- weights to zero


def test_the_cubic_schedule_ends_at_the_target_and_takes_most_at_first() -> None:
    shares = cubic(0.8, 4)
    assert shares == pytest.approx([0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3), 0.8])
    assert np.diff([0, *shares]).tolist() == sorted(np.diff([0, *shares]).tolist(), reverse=True)


def test_a_sparsity_is_reached_and_kept_while_training_and_in_the_exported_graph(
    digits_subject: Subject, digits_network: TorchNetwork, work_on: WorkOn
) -> None:
    noted, kept = Noted(), {name: one.clone() for name, one in digits_network.module.state_dict().items()}
    work = work_on(digits_subject, notes=noted)
    cooked = cook(Recipe("sparse", (PruneWeights(0.8, rounds=2, epochs=1, rate=2e-3),)), work)

    sparse = cooked.network
    assert isinstance(sparse, TorchNetwork)
    weights = prunable(sparse.module)
    count = sum(one.numel() for one in weights.values())
    assert count == 16 * 9 + 32 * 16 * 9 + 512 * 64 + 64 * 10
    assert (
        sum(int((one == 0).sum()) for one in weights.values()) == int(0.8 * count) == noted.seen["zeros"][-1]
    )
    stored = [numpy_helper.to_array(one) for one in onnx.load(cooked.graph.path).graph.initializer]
    assert sum(int((one == 0).sum()) for one in stored if one.ndim >= 2) >= int(0.8 * count)
    assert noted.seen["sparsity"] == pytest.approx([cubic(0.8, 2)[0], 0.8], abs=1e-4)
    assert len(noted.seen["round_2_loss"]) == 1
    # No smaller as a file, and said so; smaller where it is packed.
    assert cooked.graph.size == pytest.approx(digits_subject.graph.size, rel=0.02)
    assert noted.seen["packed_bytes"][-1] < 0.45 * noted.seen["weights_bytes"][-1]
    rows = digits_subject.samples.test
    assert accuracy(sparse, rows) >= accuracy(digits_network, rows) - 0.03
    assert all(torch.equal(one, kept[name]) for name, one in digits_network.module.state_dict().items())


def test_each_layer_loses_its_share_or_the_smallest_of_all_go(
    digits_network: TorchNetwork, digits_subject: Subject, work_on: WorkOn
) -> None:
    work = work_on(digits_subject)
    by_layer = PruneWeights(0.6, scope="layer", rounds=1, epochs=0).reshape(digits_network, work)
    for one in prunable(by_layer.module).values():
        assert int((one == 0).sum()) == int(0.6 * one.numel())

    everywhere = prunable(PruneWeights(0.6, rounds=1, epochs=0).reshape(digits_network, work).module)
    before = prunable(digits_network.module)
    largest_gone = max(float(before[name].detach()[one == 0].abs().max()) for name, one in everywhere.items())
    smallest_left = min(float(one.detach()[one != 0].abs().min()) for one in everywhere.values())
    assert largest_gone <= smallest_left
    shares = [float((one == 0).float().mean()) for one in everywhere.values()]
    assert max(shares) > 0.61 and min(shares) < 0.5


def test_zeros_stay_zeros_in_the_training_of_later_steps(work_for: Callable[..., Work]) -> None:
    module = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3))
    network = around(module, 20)
    work = work_for(network)
    sparse = PruneWeights(0.8, rounds=1, epochs=0).reshape(network, work)
    gone = [sparse.module[at].weight == 0 for at in (0, 2)]
    assert sum(int(one.sum()) for one in gone) == 0.8 * (20 * 40 + 40 * 3)
    for later in ({"step": "finetune"}, {"step": "qat", "activations": "dynamic"}):
        made = Recipe.from_json("later", [{**later, "epochs": 1}]).steps[0].reshape(sparse, work)  # type: ignore[union-attr]
        for at, zeros in zip((0, 2), gone, strict=True):
            assert bool((made.module[at].weight[zeros] == 0).all())
            assert not torch.equal(made.module[at].weight, sparse.module[at].weight)
    assert "_kept_zeros" not in network.module[0].__dict__


def test_no_layer_becomes_all_zeros_and_tables_and_spared_layers_keep_theirs(
    work_for: Callable[..., Work],
) -> None:
    module = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    first, middle, last = (module[at] for at in (0, 2, 4))
    assert isinstance(middle, nn.Linear) and isinstance(last, nn.Linear) and isinstance(first, nn.Linear)
    with torch.no_grad():
        middle.weight.mul_(1e-6)
    network = around(module, 20)
    sparse = PruneWeights(0.7, rounds=1, epochs=0, spare=["4"]).reshape(network, work_for(network))
    assert int((sparse.module[2].weight != 0).sum()) == 16
    assert int((sparse.module[4].weight == 0).sum()) == 0

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner, self.out = (
                nn.Embedding(9, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 9, bias=False),
            )
            self.out.weight = self.table.weight

    assert list(prunable(Tied())) == ["inner.weight"]


# --- channels


def test_half_the_channels_are_gone_from_the_exported_model_and_training_mends_it(
    digits_subject: Subject, digits_network: TorchNetwork, work_on: WorkOn
) -> None:
    noted = Noted()
    recipe = Recipe("narrow", (PruneStructure(0.5, rounds=2, epochs=2, rate=4e-3),))
    cooked = cook(recipe, work_on(digits_subject, notes=noted))

    by_hand = (9 * 8 + 8 + 16) + (8 * 16 * 9 + 16 + 32) + (256 * 32 + 32) + (32 * 10 + 10)
    small = cooked.network
    assert isinstance(small, TorchNetwork)
    assert small.parameters() == by_hand == noted.seen["parameters"][-1]
    # 16, 32 and 64 · 7/16 are due after the first round: 8, 16 and 32 when rounded to eights.
    assert noted.seen["parameters_before"] == [digits_network.parameters()]
    assert noted.seen["channels_removed"] == [8 + 16 + 32]
    assert cooked.graph.size < 0.35 * digits_subject.graph.size
    rows = digits_subject.samples.test
    answers = asked(cooked.graph, rows.feeds)
    assert np.allclose(answers, torch.softmax(torch.from_numpy(small.answers(rows)), 1), atol=1e-5)
    assert float((answers.argmax(1) == rows.y).mean()) >= accuracy(digits_network, rows) - 0.04


class Residual(nn.Module):
    """A stem and a block beside a shortcut; `norm` of n channels, the middle convolution in `groups`."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, groups: int = 1) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 16, 3, padding=1), norm(16)
        self.middle, self.second = nn.Conv2d(16, 16, 3, padding=1, groups=groups), norm(16)
        self.back, self.down = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 24, 3, stride=2)
        self.classify = nn.Linear(24, 3)

    def forward(self, features: Tensor) -> Any:
        hidden = torch.relu(self.first(self.stem(features)))
        hidden = hidden + self.back(torch.relu(self.second(self.middle(hidden))))
        return self.classify(torch.relu(self.down(hidden)).mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        pytest.param(Residual(), {"stem": 8, "middle": 8, "back": 8, "down": 12}, id="residual"),
        pytest.param(Residual(groups=16), {"stem": 8, "middle": 8, "back": 8, "down": 12}, id="depthwise"),
        pytest.param(Residual(groups=4), {"stem": 8, "middle": 8, "back": 8, "down": 12}, id="grouped"),
        pytest.param(Residual(lambda n: nn.GroupNorm(4, n)), {"stem": 8, "down": 12}, id="group norm"),
    ],
)
def test_channels_that_shortcuts_and_groups_join_leave_together(
    module: nn.Module, kept: dict[str, int], work_for: Callable[..., Work]
) -> None:
    network = around(module, 1, 8, 8)
    small = only(ratio=0.5).reshape(network, work_for(network))
    found = dict(small.module.named_modules())
    assert {name: found[name].out_channels for name in kept} == kept
    assert found["classify"].out_features == 3 and found["classify"].in_features == 12
    assert found["back"].out_channels == found["stem"].out_channels  # what is added has one width
    assert (
        found["middle"].in_channels == 8 and found["middle"].weight.shape[0] == found["middle"].out_channels
    )
    assert small.answers(network.example).shape == (4, 3)


class Joined(nn.Module):
    """Channels side by side, then one layer asked three times over."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
        self.both, self.again = nn.Conv2d(24, 12, 1), nn.Linear(12, 12)
        self.classify = nn.Linear(12, 3)

    def forward(self, features: Tensor) -> Any:
        sides = torch.cat([torch.relu(self.left(features)), torch.relu(self.right(features))], 1)
        hidden = torch.relu(self.both(sides)).mean((2, 3))
        for _ in range(3):
            hidden = hidden + torch.relu(self.again(hidden))
        return self.classify(hidden)


def test_channels_side_by_side_and_layers_asked_again_are_followed(work_for: Callable[..., Work]) -> None:
    network = around(Joined(), 1, 6, 6)
    small = only(ratio=0.5).reshape(network, work_for(network)).module
    assert (small.left.out_channels, small.right.out_channels, small.both.in_channels) == (4, 8, 12)
    assert small.both.out_channels == small.again.in_features == small.again.out_features == 6
    by_hand = (4 * 9 + 4) + (8 * 9 + 8) + (12 * 6 + 6) + (6 * 6 + 6) + (6 * 3 + 3)
    assert sum(one.numel() for one in small.parameters()) == by_hand


def test_kept_channels_are_rounded_for_fast_kernels_and_the_answers_stay_wide(
    work_for: Callable[..., Work],
) -> None:
    module = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 6), nn.ReLU(), nn.Linear(6, 3))
    network = around(module, 6)
    small = only(ratio=0.3, multiple=8).reshape(network, work_for(network))
    assert [small.module[at].out_features for at in (0, 2, 4)] == [32, 4, 3]  # 28 → 32; 6 is under a multiple


def test_units_that_do_nothing_leave_without_a_trace(work_for: Callable[..., Work]) -> None:
    module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    silent = np.random.default_rng(1).permutation(32)[:16]
    with torch.no_grad():
        for layer in (module[0], module[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.mul_(5)
        module[0].weight[silent] = 0.01  # type: ignore[index]
        module[2].weight[:, silent] = 0  # type: ignore[index]
    network = around(module, 6)
    small = only(ratio=0.5).reshape(network, work_for(network))
    assert small.parameters() == 6 * 16 + 16 + 16 * 3 + 3
    assert np.allclose(small.answers(network.example), network.answers(network.example), atol=1e-5)
    assert network.parameters() == 6 * 32 + 32 + 32 * 3 + 3


def test_taylor_sees_what_the_loss_needs_where_magnitude_sees_only_size(
    work_for: Callable[..., Work],
) -> None:
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    loud = np.arange(0, 16, 2)
    with torch.no_grad():
        module[0].weight[loud] *= 30  # type: ignore[index, operator]
        module[2].weight[:, loud] = 0  # type: ignore[index]
    network = around(module, 6)
    apart = {}
    for importance in ("magnitude", "taylor"):
        small = only(ratio=0.5, importance=importance).reshape(network, work_for(network))
        apart[importance] = float(
            np.abs(small.answers(network.example) - network.answers(network.example)).max()
        )
    assert apart["taylor"] < 1e-5 < 0.05 < apart["magnitude"]


def test_all_layers_compete_but_none_is_emptied(work_for: Callable[..., Work]) -> None:
    module = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    with torch.no_grad():
        for at in (0, 2):
            module[at].weight[: 38 if at == 0 else 2] *= 1e-3  # type: ignore[index, operator]
            module[at + 2].weight[:, : 38 if at == 0 else 2] *= 1e-3  # type: ignore[index, operator]
    network = around(module, 6)
    small = only(ratio=0.5, scope="global").reshape(network, work_for(network))
    first, second = small.module[0].out_features, small.module[2].out_features
    assert first == 4 and second == 38


def test_a_count_of_parameters_is_met_and_little_more_is_lost(
    digits_subject: Subject, digits_network: TorchNetwork, work_on: WorkOn
) -> None:
    noted = Noted()
    work = work_on(digits_subject, notes=noted)
    small = PruneStructure(parameters=15_000, rounds=1, epochs=0, multiple=1).reshape(digits_network, work)
    assert 14_000 <= small.parameters() <= 15_000
    assert 0.3 < noted.said["ratio_found"] < 0.5
    with pytest.raises(CannotExport, match="cannot make it so small"):
        PruneStructure(parameters=50, epochs=0).reshape(digits_network, work)
    with pytest.raises(BadInput, match="that small already"):
        PruneStructure(parameters=10**9, epochs=0).reshape(digits_network, work)


# --- attention


def test_heads_and_inner_units_are_gone_from_the_exported_encoder(
    transformer_subject: Subject, tiny_transformer: TorchNetwork, work_on: WorkOn
) -> None:
    noted = Noted()
    recipe = Recipe("half", (PruneStructure(0.5, rounds=1, epochs=2, rate=2e-3),))
    cooked = cook(recipe, work_on(transformer_subject, notes=noted))
    small = cooked.network
    assert isinstance(small, TorchNetwork)
    for block in small.module.blocks:
        assert (block.heads, block.head_width) == (2, 8)
        assert [one.weight.shape for one in (block.query, block.key, block.value)] == [(16, 32)] * 3
        assert block.mix.weight.shape == (32, 16)
        assert (block.up.out_features, block.down.in_features) == (32, 32)
    lost_each = 3 * (16 * 32 + 16) + 32 * 16 + (32 * 32 + 32) + 32 * 32
    assert small.parameters() == tiny_transformer.parameters() - 4 * lost_each
    assert noted.seen["heads_removed"] == [8] and noted.seen["channels_removed"] == [4 * 32]
    assert cooked.graph.size < transformer_subject.graph.size - 4 * 4 * lost_each * 0.95
    rows = transformer_subject.samples.test
    shorter = {name: values[:, :9] for name, values in rows.feeds.items()}
    answers = asked(cooked.graph, shorter)
    assert np.allclose(answers, torch.softmax(torch.from_numpy(small.answers(shorter)), 1), atol=1e-5)
    assert accuracy(small, rows) >= accuracy(tiny_transformer, rows) - 0.06
    assert [block.heads for block in tiny_transformer.module.blocks] == [4] * 4


def test_the_heads_that_do_nothing_are_the_ones_that_leave_and_one_always_stays(
    texts: Samples, work_for: Callable[..., Work]
) -> None:
    network = network_of(Encoder(), texts)
    with torch.no_grad():
        for at, block in enumerate(network.module.blocks):
            for head in ((0, 2), (1, 3), (0, 1), (2, 3))[at]:
                mine = slice(head * 8, head * 8 + 8)
                block.mix.weight[:, mine] = 0
                for layer in (block.query, block.key, block.value):
                    layer.weight[mine] *= 0.1
    work = work_for(network, texts)
    small = only(ratio=0, head_ratio=0.5).reshape(network, work)
    feeds = texts.validation.feeds
    assert [block.heads for block in small.module.blocks] == [2] * 4
    assert [block.up.out_features for block in small.module.blocks] == [64] * 4
    assert np.allclose(small.answers(feeds), network.answers(feeds), atol=1e-4)

    least = only(ratio=0, head_ratio=0.95).reshape(network, work)
    assert [block.heads for block in least.module.blocks] == [1] * 4
    assert least.answers(feeds).shape == (250, 3)


def test_the_hidden_width_goes_only_when_asked_and_everywhere_at_once(
    texts: Samples, work_for: Callable[..., Work]
) -> None:
    network = network_of(Encoder(), texts)
    small = only(ratio=0, width_ratio=0.25).reshape(network, work_for(network, texts))
    module = small.module
    assert module.tokens.weight.shape == (160, 24) and module.places.embedding_dim == 24
    assert module.last.normalized_shape == (24,) and module.classify.in_features == 24
    assert {(one.query.in_features, one.mix.out_features, one.up.in_features) for one in module.blocks} == {
        (24, 24, 24)
    }
    assert {one.heads for one in module.blocks} == {4}


class Attending(nn.Module):
    """Attention over (n, 5, 4) with all sizes read from its layers; `hidden_count` heads under an odd name."""

    def __init__(self, count: int = 4, mix: str = "softmax") -> None:
        super().__init__()
        self.hidden_count, self.mixing = count, mix
        self.enter, self.leave, self.classify = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, features: Tensor) -> Any:
        hidden = self.norm(self.enter(features))
        query, key, value = (
            layer(hidden).unflatten(-1, (self.hidden_count, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.mixing == "softmax":
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.relu(query @ key.transpose(-1, -2)) @ value
        return self.classify((hidden + self.leave(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_a_count_of_heads_under_another_name_can_be_named(work_for: Callable[..., Work]) -> None:
    network = around(Attending(), 5, 4)
    work = work_for(network)
    named = only(ratio=0.5, heads={"": "hidden_count"}).reshape(network, work)
    assert named.module.hidden_count == 2 and named.module.query.out_features == 8
    with pytest.raises(CannotExport, match="count of heads is not known"):
        only(ratio=0.5).reshape(network, work)
    with pytest.raises(BadInput, match="no module has this name"):
        only(heads={"blocks.*": "hidden_count"}).reshape(network, work)
    with pytest.raises(BadInput, match="not a count of heads"):
        only(heads={"": "mixing"}).reshape(network, work)


def test_a_cut_that_changes_the_meaning_is_not_let_through(work_for: Callable[..., Work]) -> None:
    """Without a softmax it is not told as attention; its shapes fit after the cut, its answers do not."""
    network = around(Attending(mix="relu"), 5, 4)
    with pytest.raises(CannotExport, match="changed more than it removed"):
        only(ratio=0.5).reshape(network, work_for(network))


class Packed(nn.Module):
    """Queries, keys and values out of one layer, taken apart along the last axis."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_heads = how, 4
        self.enter, self.qkv, self.proj, self.classify = (
            nn.Linear(4, 16), nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3),
        )  # fmt: skip
        self.norm = nn.LayerNorm(16)

    def forward(self, features: Tensor) -> Any:
        hidden = self.norm(self.enter(features))
        packed = self.qkv(hidden)
        if self.how == "unbind":
            parts = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            axis = 2 if self.how == "axis 2" else -1
            parts = [one.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for one in packed.chunk(3, axis)]
        mixed = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return self.classify((hidden + self.proj(mixed)).mean(1))


@pytest.mark.parametrize("how", ["unbind", "axis 2", "axis -1"])
def test_heads_leave_a_layer_that_makes_queries_keys_and_values_at_once(
    how: str, work_for: Callable[..., Work]
) -> None:
    network = around(Packed(how), 5, 4)
    small = only(ratio=0.5).reshape(network, work_for(network))
    assert small.module.num_heads == 2
    assert small.module.qkv.weight.shape == (24, 16) and small.module.proj.weight.shape == (16, 8)


class Torchs(nn.Module):
    """nn.TransformerEncoder with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.enter, self.encoder, self.classify = (
            nn.Linear(4, 16),
            nn.TransformerEncoder(layer, 1),
            nn.Linear(16, 3),
        )

    def forward(self, features: Tensor) -> Any:
        padding = features[:, :, 0] > 1.5
        return self.classify(self.encoder(self.enter(features), src_key_padding_mask=padding)[:, 0])


def test_torchs_own_attention_is_taken_apart_and_loses_heads(
    work_for: Callable[..., Work], tmp_path: Path
) -> None:
    network = around(Torchs(), 5, 4)
    features = np.asarray(network.example["features"])
    features[:, 0, 0] = 0  # what is read in the end is never padding
    features[0, 3, 0] = features[2, 1:3, 0] = 2
    small = only(ratio=0.5).reshape(network, work_for(network))
    attention = small.module.encoder.layers[0].self_attn
    assert attention.num_heads == 2 and attention.query.weight.shape == (8, 16)
    assert small.module.encoder.layers[0].linear1.out_features == 16
    lost = 3 * (8 * 16 + 8) + 16 * 8 + (16 * 16 + 16) + 16 * 16
    assert small.parameters() == network.parameters() - lost
    small.export(tmp_path / "small.onnx")
    answers = asked(Artefact.open(tmp_path / "small.onnx"), network.example)
    assert np.allclose(answers, small.answers(network.example), atol=1e-5)
    assert isinstance(network.module.encoder.layers[0].self_attn, nn.MultiheadAttention)


# --- what cannot be


class Decoder(nn.Module):
    """A table whose rows are the output's weights too, behind an inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.inner = nn.Embedding(9, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 9, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Any:
        hidden = self.table(ids).mean(1)
        return self.out(self.norm(hidden + self.inner(hidden)))


def test_tied_weights_lose_the_same_columns_and_stay_tied(
    texts: Samples, work_for: Callable[..., Work]
) -> None:
    ids = np.random.default_rng(0).integers(0, 9, (4, 5))
    network = TorchNetwork(Decoder().eval(), {"ids": ids}, LOSSES["multiclass"])
    small = only(ratio=0, width_ratio=0.5).reshape(network, work_for(network, texts))
    assert small.module.out.weight is small.module.table.weight
    assert small.module.table.weight.shape == (9, 8)
    assert small.parameters() == 9 * 8 + 2 * 8 + 8 * 8 + 8


class WrittenDown(nn.Module):
    """Its forward() knows how wide its layer was."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 16, 3)

    def forward(self, features: Tensor) -> Any:
        return self.second(torch.relu(self.first(features)).view(-1, 8 * 16))


def test_sizes_written_down_in_forward_are_a_result_with_a_reason(work_for: Callable[..., Work]) -> None:
    network = around(WrittenDown(), 1, 4, 4)
    with pytest.raises(CannotExport, match=r"does not run any more.*`spare`"):
        only(ratio=0.5).reshape(network, work_for(network))


def test_a_network_without_anything_to_remove_says_why(work_for: Callable[..., Work]) -> None:
    alone = around(nn.Linear(4, 3), 4)
    with pytest.raises(CannotExport, match="gives the answers"):
        only().reshape(alone, work_for(alone))
    narrow = around(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), 4)
    with pytest.raises(CannotExport, match="lower `multiple`"):
        only(ratio=0.1, multiple=8).reshape(narrow, work_for(narrow))
    with pytest.raises(CannotExport, match="spared"):
        only(spare=["0"]).reshape(narrow, work_for(narrow))


def test_frozen_layers_are_cut_and_stay_frozen(work_for: Callable[..., Work]) -> None:
    network = around(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4)
    first = network.module[0]
    for one in first.parameters():
        one.requires_grad_(False)
    small = only(ratio=0.5).reshape(network, work_for(network))
    assert {name for name, one in small.module.named_parameters() if not one.requires_grad} == {
        "0.weight",
        "0.bias",
    }
    assert small.module[0].out_features == 4 and not first.weight.requires_grad


@pytest.mark.parametrize("made", [PruneWeights(0.5, epochs=0), only()], ids=lambda one: one.name)
def test_weights_that_are_no_numbers_and_an_ended_budget_are_refused(
    made: Any, work_for: Callable[..., Work]
) -> None:
    network = around(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4)
    with pytest.raises(OutOfTime):
        made.reshape(network, work_for(network, until=0.0))
    with torch.no_grad():
        network.module[0].bias[1] = torch.nan
    with pytest.raises(BadInput, match=r"0\.bias.*1 of 8 NaN"):
        made.reshape(network, work_for(network))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prune-weights", {"sparsity": 1.0}),
        ("prune-weights", {"sparsity": 0}),
        ("prune-weights", {"scope": "model"}),
        ("prune-weights", {"rounds": 0}),
        ("prune-weights", {"sparsity": "half"}),
        ("prune-structure", {"ratio": 1.0}),
        ("prune-structure", {"ratio": -0.1}),
        ("prune-structure", {"ratio": 0}),
        ("prune-structure", {"head_ratio": 2}),
        ("prune-structure", {"importance": "random"}),
        ("prune-structure", {"parameters": 10, "scope": "global"}),
        ("prune-structure", {"multiple": 0}),
        ("prune-structure", {"rounds": 2.5}),
        ("prune-structure", {"spare": "encoder.*"}),
        ("prune-structure", {"heads": ["attention"]}),
        ("prune-structure", {"ratio": float("nan")}),
        ("prune-structure", {"rate": 0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=name if "rate" not in settings else "training"):
        step(name, settings)


def test_settings_come_back_from_json_as_they_went() -> None:
    recipe = Recipe("both", (PruneWeights(spare=["a.*"]), PruneStructure(heads={"b*": "count"})))
    assert Recipe.from_json("both", recipe.to_json()).key == recipe.key
    assert recipe.to_json()[1]["heads"] == {"b*": "count"}
