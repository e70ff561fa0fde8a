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
from loopwright.compression.networks.lowrank import LowRank, decompose
from loopwright.compression.networks.network import LOSSES, TorchNetwork
from loopwright.compression.networks.vocabulary import Trimmed, TrimVocabulary
from loopwright.compression.recipe import Recipe, cook
from loopwright.compression.steps import CannotExport, Work, step
from loopwright.compression.subject import Rows, Samples, Subject
from loopwright.kernel.errors import BadInput

pytestmark = pytest.mark.unit

WorkOn = Callable[..., Work]


class Noted:
    """Keeps what steps note."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.seen |= values


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


def test_a_factored_encoder_is_a_smaller_file_that_still_knows(
    transformer_subject: Subject, tiny_transformer: TorchNetwork, work_on: WorkOn
) -> None:
    noted = Noted()
    recipe = Recipe("thin", (LowRank(ratio=0.5, epochs=2, rate=2e-3),))
    cooked = cook(recipe, work_on(transformer_subject, notes=noted))
    thin = cooked.network
    assert isinstance(thin, TorchNetwork)
    per_block = 4 * (32 * 32 - 8 * 64) + 2 * (32 * 64 - 10 * 96)
    assert thin.parameters() == tiny_transformer.parameters() - 4 * per_block == noted.seen["parameters"]
    assert noted.seen["layers_factored"] == 24 and noted.seen["layers_left_alone"] == 1
    assert 0 < noted.seen["mean_energy_lost"] < 0.5 and "low_rank_loss" in noted.seen
    assert cooked.graph.size < transformer_subject.graph.size - 4 * 4 * per_block * 0.8
    rows = transformer_subject.samples.test
    answers = asked(cooked.graph, rows.feeds)
    assert np.allclose(answers, torch.softmax(torch.from_numpy(thin.answers(rows)), 1), atol=1e-5)
    parent = float((tiny_transformer.answers(rows).argmax(1) == rows.y).mean())
    assert float((answers.argmax(1) == rows.y).mean()) >= parent - 0.06


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


def test_answers_for_ids_that_are_kept_do_not_change_and_the_file_is_smaller(
    transformer_subject: Subject, tiny_transformer: TorchNetwork, work_on: WorkOn
) -> None:
    noted = Noted()
    cooked = cook(Recipe("words", (TrimVocabulary(),)), work_on(transformer_subject, notes=noted))
    trimmed = cooked.network
    assert isinstance(trimmed, TorchNetwork)
    used = len(np.unique(transformer_subject.samples.train.feeds["input_ids"]))
    assert tiny_transformer.parameters() - trimmed.parameters() == (160 - used - 1) * 32
    saved = (160 - used - 1) * 32 * 4 - 160  # a byte for each old id
    assert noted.seen["bytes_saved"] == saved and noted.seen["unknown_share.tokens"] == 0
    assert cooked.graph.size < transformer_subject.graph.size - saved + 2_000
    feeds = transformer_subject.samples.test.feeds
    assert np.array_equal(asked(cooked.graph, feeds), asked(transformer_subject.graph, feeds))

    # Ids that never occurred are all answered like one another: by the mean of the rows that left.
    strange = {name: values[:2, :6].copy() for name, values in feeds.items()}
    strange["attention_mask"][:] = 1
    strange["input_ids"][:] = strange["input_ids"][:1]
    strange["input_ids"][:, 3] = [120, 159]
    first, second = asked(cooked.graph, strange)
    assert np.array_equal(first, second)
    apart = asked(transformer_subject.graph, strange)
    assert not np.array_equal(apart[0], apart[1])


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


def test_the_table_of_places_grows_with_the_rows_that_are_kept(
    work_with: Callable[..., Work], tmp_path: Path
) -> None:
    samples = words(399)
    many = np.arange(1, 301).reshape(100, 3)
    samples = Samples(Rows({"ids": many}, np.arange(100) % 3), samples.validation, samples.test, shared=1.0)
    network = around(Words(), samples)
    trimmed = TrimVocabulary().reshape(network, work_with(samples))
    assert trimmed.module.table.row.dtype == torch.int16 and trimmed.module.table.num_embeddings == 302
    trimmed.export(tmp_path / "words.onnx")
    feeds = {"ids": np.array([[1, 2, 300], [0, 399, 350]])}
    answers = asked(Artefact.open(tmp_path / "words.onnx"), feeds)
    assert np.allclose(answers, trimmed.answers(feeds), atol=1e-6)
    assert np.allclose(answers[0], network.answers(feeds)[0], atol=1e-6)


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
    ],
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=name):
        step(name, settings)
