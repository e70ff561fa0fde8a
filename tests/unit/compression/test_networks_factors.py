"""Layers as products of thin ones, and tables of embeddings without the rows nobody looks up."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from loopwright.compression.artefact import Artefact
from loopwright.compression.networks.lowrank import LowRank, Product, decompose, ranks_within
from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.networks.vocabulary import Trimmed, TrimVocabulary
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, Work, step
from loopwright.compression.subject import Rows, Samples, Subject
from loopwright.kernel.errors import BadInput
from tests.unit.compression.example_networks import Encoder, network_of

pytestmark = pytest.mark.unit

WorkOn = Callable[..., Work]


class Noted:
    """Keeps what steps note."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.seen |= {name.rpartition("/")[2]: value for name, value in values.items()}


def drawn(*shape: int, count: int = 60, spread: Any = 1.0) -> Samples:
    draw = np.random.default_rng(5)

    def rows() -> Rows:
        features = (draw.standard_normal((count, *shape)) * spread).astype(np.float32)
        return Rows({"features": features}, draw.integers(0, 3, count))

    return Samples(rows(), rows(), rows())


@pytest.fixture
def work_with(tmp_path: Path) -> Callable[..., Work]:
    """work_with(samples) → work that learns from those rows; these networks are looked at, not measured."""

    def made(samples: Samples, **rest: Any) -> Work:
        return Work(SimpleNamespace(samples=samples), tmp_path, tmp_path, **rest)  # type: ignore[arg-type]

    return made


def around(module: nn.Module, samples: Samples) -> TorchNetwork:
    example = {name: values[:4] for name, values in samples.train.feeds.items()}
    return TorchNetwork(module.eval(), example, LOSSES["multiclass"])


def asked(graph: Artefact, feeds: Mapping[str, Any]) -> Any:
    session = ort.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


# --- low rank


def of_rank(rank: int, outputs: int, inputs: int) -> Tensor:
    torch.manual_seed(rank)
    return torch.randn(outputs, rank) @ torch.randn(rank, inputs) / inputs


@pytest.mark.parametrize("aware", [True, False])
def test_a_matrix_of_known_rank_is_found_out_and_nothing_is_lost(
    aware: bool, work_with: Callable[..., Work]
) -> None:
    module, samples = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)), drawn(40)
    with torch.no_grad():
        module[0].weight.copy_(of_rank(5, 30, 40))  # type: ignore[arg-type, operator, union-attr]
    network = around(module, samples)
    thin = LowRank(energy=0.999999, aware=aware).reshape(network, work_with(samples))
    assert [tuple(one.weight.shape) for one in thin.module[0]] == [(5, 40), (30, 5)]
    assert isinstance(thin.module[2], nn.Linear)  # 3 x 30 has no smaller product
    assert thin.parameters() == 5 * 40 + 30 * 5 + 30 + 30 * 3 + 3
    feeds = samples.test.feeds
    assert np.allclose(thin.answers(feeds), network.answers(feeds), atol=1e-4)
    assert isinstance(network.module[0], nn.Linear)


def test_knowing_the_inputs_loses_less_of_the_outputs_at_the_same_rank(
    work_with: Callable[..., Work],
) -> None:
    """Inputs vary a hundredfold more in some directions: plain SVD minds all directions alike."""
    samples = drawn(32, spread=np.geomspace(0.03, 3, 32), count=200)
    network = around(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 3)), samples)
    work, feeds = work_with(samples), samples.test.feeds
    lost = {}
    for aware in (True, False):
        thin = LowRank(rank=8, aware=aware, spare=["1"]).reshape(network, work)
        lost[aware] = float(np.square(thin.answers(feeds) - network.answers(feeds)).mean())
    assert 0 < lost[True] < 0.35 * lost[False]


def test_what_all_inputs_share_is_left_to_the_bias(work_with: Callable[..., Work]) -> None:
    """Inputs vary in three directions about a mean far from zero: rank 3 is enough with a bias, 4 without."""
    torch.manual_seed(4)
    samples, ways = drawn(3, count=100), np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    for part in (samples.train, samples.validation, samples.test):
        part.feeds["features"] = 20 + part.feeds["features"] @ ways  # type: ignore[index]
    apart = {}
    for bias in (True, False):
        network = around(nn.Sequential(nn.Linear(24, 24, bias), nn.Linear(24, 3)), samples)
        expected = network.answers(samples.test)
        for rank in (3, 4):
            thin = LowRank(rank=rank, spare=["1"]).reshape(network, work_with(samples))
            apart[bias, rank] = float(np.abs(thin.answers(samples.test) - expected).max())
    assert apart[True, 3] < 0.01 and apart[False, 4] < 0.01 < 0.05 < apart[False, 3]


def test_the_product_is_the_best_of_its_rank_for_the_given_inputs() -> None:
    """The least of ‖(W - W')·C‖² is the sum of the squared singular values of W·C that were cut (Eckart-Young)."""
    torch.manual_seed(1)
    matrix, inputs = torch.randn(12, 9), torch.randn(500, 9) * torch.logspace(-1, 1, 9)
    moment = (inputs.T @ inputs / 500).double()
    left, values, right = decompose(matrix, torch.linalg.cholesky(moment))
    product = (left[:, :4] * values[:4]) @ right[:4]
    missed = matrix.double() - product
    error = torch.trace(missed @ moment @ missed.T)
    oracle = np.linalg.svd(matrix.numpy() @ np.linalg.cholesky(moment.numpy()), compute_uv=False)
    assert float(error) == pytest.approx(float(np.square(oracle[4:]).sum()), rel=1e-6)


def test_a_factored_network_is_a_smaller_file_that_still_knows(
    digits_subject: Subject, digits_network: TorchNetwork, work_on: WorkOn
) -> None:
    noted = Noted()
    recipe = Recipe("thin", (LowRank(ratio=0.3, epochs=1, rate=1e-3),))
    cooked = cook(recipe, work_on(digits_subject, notes=noted))
    thin = cooked.network
    assert isinstance(thin, TorchNetwork)
    inner, outer = thin.module.net[9], thin.module.net[11]
    rank = inner[0].out_features
    assert isinstance(outer, nn.Linear)  # 64 x 10: its directions hold most per number, so it stays whole
    assert rank * 576 + 640 <= 0.3 * (512 * 64 + 640) < (rank + 1) * 576 + 640
    saved = 64 * 512 - rank * 576
    assert thin.parameters() == digits_network.parameters() - saved == noted.seen["parameters"]
    assert noted.seen["layers_factored"] == 1 and noted.seen["mean_rank"] == rank
    assert 0 < noted.seen["mean_energy_lost"] < 0.2 and "training_loss" in noted.seen
    assert cooked.graph.size < digits_subject.graph.size - 4 * saved + 2_000
    rows = digits_subject.samples.test
    answers = asked(cooked.graph, rows.feeds)
    assert np.allclose(answers, torch.softmax(torch.from_numpy(thin.answers(rows)), 1), atol=1e-5)
    parent = float((digits_network.answers(rows).argmax(1) == rows.y).mean())
    assert float((answers.argmax(1) == rows.y).mean()) >= parent - 0.03


def test_an_encoder_is_factored_layer_by_layer(texts: Samples, work_with: Callable[..., Work]) -> None:
    torch.manual_seed(3)
    network, noted, feeds = network_of(Encoder(), texts), Noted(), texts.test.feeds
    apart = {}
    for rank in (4, 12):
        thin = LowRank(rank=rank).reshape(network, work_with(texts, notes=noted))
        per_block = 4 * (32 * 32 - rank * 64) + 2 * (32 * 64 - rank * 96)
        assert thin.parameters() == network.parameters() - 4 * per_block
        assert noted.seen["layers_factored"] == 24 and noted.seen["layers_left_alone"] == 1
        apart[rank] = float(np.square(thin.answers(feeds) - network.answers(feeds)).mean())
    assert apart[12] < 0.5 * apart[4]


def test_numbers_go_to_the_directions_that_hold_most_each() -> None:
    """A layer whose energy is in two directions gets those, and one of even energy what is left of the budget."""

    def product(outputs: int, inputs: int, energy: list[float]) -> Product:
        rank = len(energy)
        return Product(
            torch.ones(outputs, rank), torch.ones(rank, inputs), torch.tensor(energy, dtype=torch.float64)
        )

    products = {"peaked": product(8, 8, [5, 5, *[1e-6] * 6]), "even": product(8, 8, [1.0] * 3 + [0.9] * 5)}
    assert ranks_within(0.65, products) == {"peaked": 2, "even": 3}  # 80 of 83 numbers
    assert ranks_within(0.4, products) == {"peaked": 2, "even": 1}  # 48 of 51; all three at once would be 80
    assert ranks_within(0.01, products) == {"peaked": 1, "even": 1}


def test_convolutions_of_one_pixel_and_packed_attention_are_layers_like_others(
    work_with: Callable[..., Work],
) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.wide = nn.Conv2d(12, 12, 1, stride=2), nn.Conv2d(12, 12, 3, padding=1)
            self.attend = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, features: Tensor) -> Any:
            rows = self.wide(self.mix(features)).flatten(2).transpose(1, 2)
            return self.attend(rows, rows, rows, need_weights=False)[0].mean(1)

    samples = drawn(12, 4, 4)
    network = around(Mixed(), samples)
    thin = LowRank(rank=2).reshape(network, work_with(samples))
    assert [tuple(one.weight.shape) for one in thin.module.mix] == [(2, 12, 1, 1), (12, 2, 1, 1)]
    assert thin.module.mix[0].stride == (2, 2) and isinstance(thin.module.wide, nn.Conv2d)
    assert network.parameters() - thin.parameters() == 5 * (144 - 48)
    full = LowRank(rank=5).reshape(network, work_with(samples))
    near, far = (
        np.abs(one.answers(network.example) - network.answers(network.example)).mean() for one in (full, thin)
    )
    assert near < far


def test_layers_that_would_not_shrink_stay_and_none_is_a_result_with_a_reason(
    work_with: Callable[..., Work],
) -> None:
    samples = drawn(8)
    network = around(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), samples)
    work = work_with(samples)
    with pytest.raises(CannotExport, match=r"no layer would have fewer numbers.*rank 4"):
        LowRank(rank=4).reshape(network, work)  # 4 · 16 = 64 numbers, as many as before
    assert LowRank(rank=3, spare=["2"]).reshape(network, work).parameters() == 3 * 16 + 8 + 27
    with torch.no_grad():
        network.module[0].weight[0, 0] = torch.inf
    with pytest.raises(BadInput, match=r"0\.weight"):
        LowRank(rank=3).reshape(network, work)


def test_inputs_that_are_no_numbers_are_named(work_with: Callable[..., Work]) -> None:
    samples = drawn(8)
    network = around(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), samples)
    samples.train.feeds["features"][:, 2] = np.nan
    with pytest.raises(BadInput, match=r"low-rank: 0.*finite rows"):
        LowRank(rank=2).reshape(replace(network, example=samples.test.feeds), work_with(samples))


# --- vocabulary


class Words(nn.Module):
    """Ids (n, 3) → 3 logits by a table of 400 rows."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table, self.classify = (
            nn.Embedding(400, 8, padding_idx=0),
            nn.Linear(8, 400 if tied else 3, bias=False),
        )
        if tied:
            self.classify.weight = self.table.weight

    def forward(self, ids: Tensor) -> Any:
        return self.classify(self.table(ids).mean(1))


def words(used: int = 300) -> Samples:
    draw = np.random.default_rng(2)

    def rows(count: int = 200) -> Rows:
        # Low ids are frequent; ids from 1 on, so that padding is never seen.
        return Rows(
            {"ids": 1 + (used * draw.random((count, 3)) ** 2).astype(np.int64)}, draw.integers(0, 3, count)
        )

    return Samples(rows(), rows(), rows())


def test_frequent_special_padding_and_unknown_ids_are_kept(work_with: Callable[..., Work]) -> None:
    samples, noted = words(), Noted()
    network = around(Words(), samples)
    counts = np.bincount(samples.train.feeds["ids"].ravel(), minlength=400)
    step_ = TrimVocabulary(most=50, special=(390, 395), unknown=399)
    trimmed = step_.reshape(network, work_with(samples, notes=noted)).module.table
    assert isinstance(trimmed, Trimmed)
    kept = {int(one) for one in trimmed.keep}
    assert {0, 390, 395, 399} <= kept and len(kept) == 54 == trimmed.num_embeddings
    assert counts[sorted(kept - {0, 390, 395, 399})].min() >= np.sort(counts)[-51]
    old = network.module.table.weight
    gone = next(one for one in range(1, 300) if one not in kept)
    ids = torch.tensor([[5, 390, 0, gone, 300]])
    assert torch.equal(trimmed(ids), old[torch.tensor([[5, 390, 0, 399, 399]])])
    assert 0 < noted.seen["unknown_share.table"] < 1
    with pytest.raises(IndexError):
        trimmed(torch.tensor([[400]]))


def test_answers_for_ids_that_are_kept_do_not_change_and_the_file_is_smaller(
    work_with: Callable[..., Work], tmp_path: Path
) -> None:
    """In ONNX Runtime, before and after; more than 256 rows stay, so the way to them takes two bytes an id."""
    noted, samples = Noted(), words(399)
    many = np.arange(1, 301).reshape(100, 3)
    samples = Samples(Rows({"ids": many}, np.arange(100) % 3), samples.validation, samples.test, shared=1.0)
    network = around(Words(), samples)
    trimmed = TrimVocabulary(others="mean").reshape(network, work_with(samples, notes=noted))
    table = trimmed.module.table
    assert table.row.dtype == torch.int16 and table.num_embeddings == 302  # with padding and the mean
    saved = (400 - 302) * 8 * 4 - 400 * 2
    assert noted.seen["bytes_saved"] == saved and (noted.seen["rows_before"], noted.seen["rows"]) == (
        400,
        302,
    )
    assert network.parameters() - trimmed.parameters() == (400 - 302) * 8
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    network.export(before)
    trimmed.export(after)
    old, new = Artefact.open(before), Artefact.open(after)
    assert old.size - new.size > saved - 1_000
    kept = {"ids": np.array([[1, 2, 300], [0, 17, 99]])}
    assert np.array_equal(asked(new, kept), asked(old, kept))

    # Ids that never occurred are answered like one another: by the mean of the rows that left.
    strange = {"ids": np.array([[1, 301, 300], [1, 399, 300]])}
    first, second = asked(new, strange)
    assert np.array_equal(first, second) and not np.array_equal(*asked(old, strange))
    with torch.no_grad():
        gone = network.module.table.weight[301:].mean(0)
        by_hand = network.module.classify((network.module.table.weight[[1, 300]].sum(0) + gone) / 3)
    assert np.allclose(first, by_hand, atol=1e-6)


def test_other_ids_come_to_the_row_that_is_most_alike(work_with: Callable[..., Work], tmp_path: Path) -> None:
    """In ONNX Runtime. Neither to padding's row nor to a special one's, however alike; lengths do not count."""
    samples, network = words(300), around(Words(), words(300))
    weights = network.module.table.weight
    with torch.no_grad():
        weights[0] = weights[350] = weights[380]  # padding, a special id, and one that never occurs
        weights[381] = 40 * weights[1]
    step_ = TrimVocabulary(most=50, special=(350,))
    trimmed = step_.reshape(network, work_with(samples))
    kept = trimmed.module.table.keep
    able = np.array([one for one in kept if one not in (0, 350)])
    cosines = nn.functional.cosine_similarity(weights[:, None], weights[able][None], dim=2)
    nearest = {one: int(able[int(cosines[one].argmax())]) for one in range(400) if one not in kept}
    assert nearest[381] == 1 and len(set(nearest.values())) > 20
    path = tmp_path / "after.onnx"
    trimmed.export(path)
    gone = np.array(sorted(nearest))
    ids = np.stack([gone, np.full_like(gone, 3), gone], 1)
    instead = np.stack(
        [[nearest[one] for one in gone], np.full_like(gone, 3), [nearest[one] for one in gone]], 1
    )
    answered = asked(Artefact.open(path), {"ids": ids})
    assert np.allclose(answered, network.answers({"ids": instead}), atol=1e-6)
    assert not np.allclose(answered, network.answers({"ids": ids}), atol=1e-2)


@pytest.mark.parametrize(("share", "rows"), [(0.5, 1), (0.51, 2), (0.9, 3), (1.0, 4)])
def test_only_ids_that_make_up_a_share_of_all_look_ups_are_kept(
    share: float, rows: int, work_with: Callable[..., Work]
) -> None:
    ids = np.repeat([5, 7, 9, 11], [30, 18, 9, 3]).reshape(20, 3)
    seen = Rows({"ids": ids}, np.arange(20) % 3)
    samples = Samples(seen, seen, seen, shared=1.0)
    trimmed = TrimVocabulary(share=share).reshape(around(Words(), samples), work_with(samples))
    assert trimmed.module.table.keep.tolist() == [0, 5, 7, 9, 11][: rows + 1]  # with padding


def test_an_input_among_several_is_found_to_be_the_one_looked_up(
    texts: Samples, work_with: Callable[..., Work]
) -> None:
    network, noted = network_of(Encoder(), texts), Noted()
    trimmed = TrimVocabulary().reshape(network, work_with(texts, notes=noted))
    used = len(np.unique(texts.train.feeds["input_ids"]))
    assert network.parameters() - trimmed.parameters() == (160 - used) * 32
    assert noted.seen["unknown_share.tokens"] == 0 and type(trimmed.module.places) is nn.Embedding
    feeds = texts.test.feeds
    assert np.array_equal(trimmed.answers(feeds), network.answers(feeds))


def test_tables_that_cannot_be_trimmed_are_a_result_with_a_reason(work_with: Callable[..., Work]) -> None:
    samples = words()
    work = work_with(samples)
    with pytest.raises(CannotExport, match=r"tied to other weights.*Untie"):
        TrimVocabulary().reshape(around(Words(tied=True), samples), work)
    network = around(Words(), samples)
    with pytest.raises(CannotExport, match=r"no input is looked up in it.*classify.*table"):
        TrimVocabulary(embedding="classify").reshape(network, work)
    with pytest.raises(BadInput, match="special ids outside the table"):
        TrimVocabulary(special=(400,)).reshape(network, work)
    every = Rows({"ids": np.arange(399).reshape(133, 3)}, np.arange(133) % 3)
    full = Samples(every, samples.validation, samples.test, shared=1.0)
    with pytest.raises(CannotExport, match="no table would be smaller"):
        TrimVocabulary().reshape(around(Words(), full), work_with(full))
    beyond = Samples(
        Rows({"ids": every.feeds["ids"] + 5}, every.y), samples.validation, samples.test, shared=1.0
    )
    with pytest.raises(BadInput, match=r"ids outside the table.*got 5 to 403"):
        TrimVocabulary().reshape(network, work_with(beyond))
    flat = drawn(4)
    with pytest.raises(CannotExport, match="no input is looked up in a table"):
        TrimVocabulary().reshape(around(nn.Linear(4, 3), flat), work_with(flat))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("low-rank", {"energy": 0.0}),
        ("low-rank", {"energy": 1.5}),
        ("low-rank", {"rank": 0}),
        ("low-rank", {"ratio": 1.0}),
        ("low-rank", {"rank": 4, "ratio": 0.5}),
        ("low-rank", {"rows": 0}),
        ("trim-vocabulary", {"least": 0}),
        ("trim-vocabulary", {"most": 0}),
        ("trim-vocabulary", {"share": 0.0}),
        ("trim-vocabulary", {"share": 1.01}),
        ("trim-vocabulary", {"share": "most"}),
        ("trim-vocabulary", {"others": "median"}),
        ("trim-vocabulary", {"special": [-1]}),
        ("trim-vocabulary", {"unknown": "[UNK]"}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=name):
        step(name, settings)
