"""Each way of quantizing a graph, checked on the file that it writes."""

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from loopwright.compression.artefact import Artefact, save
from loopwright.compression.graphs import preparing, running
from loopwright.compression.graphs.blockwise import to_blocks
from loopwright.compression.graphs.calibrating import channels, entropy_limit, percentile_limits
from loopwright.compression.graphs.encoding import by_channel, split_gemms
from loopwright.compression.graphs.mixed import split
from loopwright.compression.graphs.preparing import layers, prepare
from loopwright.compression.graphs.running import answers
from loopwright.compression.graphs.smooth import smooth
from loopwright.compression.judging import alone, predict
from loopwright.compression.latency import compare
from loopwright.compression.steps import GraphStep, Work, step
from loopwright.compression.subject import Rows, Samples, Subject, Unnoted

from . import graphs_by_hand as made

Encode = Callable[..., Artefact]


class Kept(Unnoted):
    """What a step noted."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.figures: dict[str, list[float]] = {}

    def params(self, values: Mapping[str, Any]) -> None:
        self.said |= values

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.figures.setdefault(name, []).append(value)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """Subjects by name, each made once and only when asked for."""
    folder, known = tmp_path_factory.mktemp("graphs"), dict[str, Subject]()
    makers: dict[str, Callable[[Path], Subject]] = {
        "mlp": made.mlp,
        "cnn": made.cnn,
        "recurrent": made.recurrent,
        "transformer": made.transformer,
        "outliers": lambda at: made.transformer(at, outliers=40.0),
        "untied": lambda at: made.transformer(at, tied=False),
        "narrow": lambda at: made.transformer(at, width=40),
    }

    def subject(name: str) -> Subject:
        if name not in known:
            known[name] = makers[name](folder)
        return known[name]

    return subject


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """encode(subject, step name, settings…) → the file; the step's notes in `notes`."""

    def encoded(subject: Subject, name: str, notes: Kept | None = None, **settings: Any) -> Artefact:
        folder = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        one = step(name, settings)
        assert isinstance(one, GraphStep)
        return one.encode(
            subject.graph, folder / "model.onnx", Work(subject, folder, tmp_path, notes or Kept())
        )

    return encoded


def error(subject: Subject, found: Artefact) -> float:
    """Root mean square of the difference on test rows, as a share of the parent's spread."""
    before, after = (predict(one, subject.samples.test.feeds) for one in (subject.graph, found))
    return float(np.sqrt(np.mean((after - before) ** 2)) / before.std())


# Errors: 8 bits round a weight by at most 1/254 of its channel's largest, 4 bits by 1/30 of its block's; through three
# layers that stays under 2 % and 20 % of the answers' spread. Float16 has 11 binary digits. Bytes fall short of 4 and 8
# times by scales, biases and node names, which weigh in graphs as small as these.
EVERY = [
    ("mlp", "fp16", {}, 1.95, 0.001),
    ("mlp", "fp16", {"compute": "float16"}, 1.95, 0.003),
    ("mlp", "int8-dynamic", {}, 3.6, 0.02),
    ("mlp", "int8-dynamic", {"reduce_range": True}, 3.6, 0.04),
    ("mlp", "int8-static", {}, 3.5, 0.02),
    ("mlp", "int8-smooth", {}, 3.6, 0.02),
    ("mlp", "int8-mixed", {}, 3.6, 0.05),
    ("mlp", "weights", {"bits": 8}, 3.5, 0.02),
    ("mlp", "weights", {}, 6.2, 0.2),
    ("cnn", "fp16", {}, 1.9, 0.001),
    ("cnn", "int8-static", {}, 3.1, 0.03),
    ("cnn", "int8-static", {"calibration": "entropy"}, 3.1, 0.1),
    ("cnn", "int8-static", {"calibration": "percentile", "percentile": 99.9}, 3.1, 0.1),
    ("cnn", "weights", {"bits": 8}, 2.9, 0.02),
    ("cnn", "weights", {}, 4.4, 0.2),
    ("recurrent", "fp16", {}, 1.9, 0.003),
    ("recurrent", "int8-dynamic", {}, 3.3, 0.05),
    ("recurrent", "weights", {"bits": 8}, 2.8, 0.03),
    ("recurrent", "weights", {}, 4.6, 0.2),
    ("transformer", "fp16", {}, 1.9, 0.003),
    ("transformer", "int8-dynamic", {}, 3.3, 0.03),
    ("transformer", "int8-static", {"rows": 32}, 3.3, 0.03),
    ("transformer", "int8-smooth", {"base": "static", "rows": 32}, 3.3, 0.03),
    ("transformer", "weights", {"bits": 8}, 3.4, 0.02),
    ("transformer", "weights", {"block_size": 64, "symmetric": True}, 6.3, 0.2),
    ("narrow", "weights", {"bits": 8}, 2.7, 0.02),
]


@pytest.mark.parametrize(("kind", "name", "settings", "smaller", "near"), EVERY)
def test_the_file_is_smaller_by_what_its_bits_say_answers_alike_and_is_the_same_each_time(
    kind: str, name: str, settings: dict[str, Any], smaller: float, near: float,
    subjects: Callable[[str], Subject], encode: Encode,
) -> None:  # fmt: skip
    subject, notes = subjects(kind), Kept()
    before = {path.name: path.read_bytes() for path in subject.graph.path.parent.iterdir()}

    found = encode(subject, name, notes, **settings)

    assert subject.graph.size / found.size >= smaller
    assert error(subject, found) <= near
    assert encode(subject, name, **settings).digest == found.digest
    assert [path.name for path in found.path.parent.iterdir()] == ["model.onnx"]
    assert {path.name: path.read_bytes() for path in subject.graph.path.parent.iterdir()} == before
    assert notes.figures["bytes"] == [found.size]


@pytest.mark.parametrize("name", ["fp16", "int8-dynamic", "int8-static", "weights"])
def test_latency_is_measured_beside_the_original(
    name: str, subjects: Callable[[str], Subject], encode: Encode
) -> None:
    subject = subjects("mlp")
    found = compare(subject.graph, encode(subject, name), subject.samples.test.feeds, rounds=2, calls=20)
    assert 0 < found.p50 <= found.p99
    assert 0 < found.original_p50 <= found.original_p99


# Dynamic quantization takes the range of an activation over the whole batch; the others must not.
@pytest.mark.parametrize(
    ("name", "settings", "free"),
    [
        ("int8-dynamic", {}, False), ("int8-smooth", {}, False), ("int8-smooth", {"base": "static", "rows": 32}, True),
        ("int8-static", {"rows": 32}, True), ("fp16", {}, True), ("weights", {}, True), ("weights", {"bits": 8}, True),
    ],
)  # fmt: skip
def test_an_answer_depends_on_its_batch_only_where_the_step_says_so(
    name: str, settings: dict[str, Any], free: bool, subjects: Callable[[str], Subject], encode: Encode
) -> None:
    subject = subjects("untied")
    found = encode(subject, name, **settings)
    spread = float(predict(found, subject.samples.test.feeds).std())
    difference = alone(found, subject.samples.test.feeds, rows=32) / spread
    assert step(name, settings).batch_free is free  # type: ignore[union-attr]
    assert (difference < 1e-5) is free


def test_weights_are_rounded_per_channel_and_convolutions_run_on_integers(
    subjects: Callable[[str], Subject], encode: Encode
) -> None:
    found = encode(subjects("cnn"), "int8-static").load()
    scales = {one.name: len(numpy_helper.to_array(one).reshape(-1)) for one in found.graph.initializer}
    weights = [
        one for one in found.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) > 1
    ]
    assert sorted(tuple(one.dims) for one in weights) == [(10, 256), (32, 1, 3, 3), (64, 32, 3, 3)] or sorted(
        tuple(one.dims) for one in weights
    ) == [(32, 1, 3, 3), (64, 32, 3, 3), (256, 10)]
    assert {scales[one.name.replace("_quantized", "_scale")] for one in weights} == {10, 32, 64}
    kinds = Counter(node.op_type for node in found.graph.node)
    assert kinds["Relu"] == 0  # a range that starts at zero does its work
    last = next(node for node in found.graph.node if node.op_type == "Softmax")
    assert last.input[0] in {
        out for node in found.graph.node if node.op_type == "Gemm" for out in node.output
    }


def test_integers_are_symmetric_within_each_channel() -> None:
    values = np.array([[1.0, -100.0], [-0.75, 50.5], [0.25, 0.0]], np.float32)
    whole, scale = by_channel(values, 1)
    assert whole.tolist() == [[127, -127], [-95, 64], [32, 0]]
    np.testing.assert_allclose(scale, [1 / 127, 100 / 127], rtol=1e-6)
    assert np.abs(by_channel(values, 1, 64)[0]).max() == 64


def test_a_table_that_is_also_the_last_product_is_stored_once(
    subjects: Callable[[str], Subject], encode: Encode
) -> None:
    tied, untied = subjects("transformer"), subjects("untied")
    assert untied.graph.size - tied.graph.size > 0.9 * made.WORDS * made.WIDTH * 4
    for name, settings, bits in (
        ("fp16", {}, 16), ("int8-dynamic", {}, 8), ("int8-static", {"rows": 32}, 8), ("int8-smooth", {"rows": 32}, 8),
        ("weights", {}, 4), ("weights", {"bits": 8}, 8),
    ):  # fmt: skip
        found = encode(tied, name, **settings).load()
        bytes_of_table = made.WORDS * made.WIDTH * bits // 8
        large = [
            one
            for one in found.graph.initializer
            if len(numpy_helper.to_array(one).tobytes()) >= 0.9 * bytes_of_table
        ]
        assert len(large) == 1, (name, [one.name for one in large])


@pytest.mark.parametrize("name", ["fp16", "int8-dynamic", "int8-static", "weights"])
def test_a_weight_that_is_looked_up_in_and_multiplied_with_as_it_stands_keeps_both_meanings(
    name: str, tmp_path: Path, encode: Encode
) -> None:
    random, one = np.random.default_rng(1), made.Writer()
    table = one.weight((random.normal(size=(64, 64)) * np.linspace(0.05, 0.2, 64)).astype(np.float32))
    seen = one.then("Tanh", one.then("MatMul", one.then("Gather", table, "ids"), table))
    one.then("Gemm", seen, table, transB=1, out="y")
    model = one.model({"ids": (TensorProto.INT64, ["rows"])}, "y")
    save(model, tmp_path / "both.onnx")
    ids = np.arange(600) % 64
    samples = Samples(*(Rows({"ids": ids}, np.zeros(600)) for _ in range(3)), shared=1.0)
    subject = Subject.of("both", tmp_path / "both.onnx", samples, "rmse")
    settings = {"bits": 8} if name == "weights" else {}
    assert error(subject, encode(subject, name, **settings)) < 0.03  # scales of the wrong axis: above 0.3


def test_tables_shrink_only_when_asked(subjects: Callable[[str], Subject], encode: Encode) -> None:
    subject = subjects("untied")
    table = made.WORDS * made.WIDTH
    for name, saved in (("int8-dynamic", 3), ("weights", 3.4)):
        with_tables, without = (encode(subject, name, embeddings=asked) for asked in (True, False))
        assert without.size - with_tables.size == pytest.approx(saved * table, rel=0.08)
        assert "Gather" in without.operators


def test_what_an_exporter_left_in_the_graph_is_gone(
    subjects: Callable[[str], Subject], encode: Encode, tmp_path: Path
) -> None:
    model = subjects("mlp").graph.load()
    for node in model.graph.node:
        node.doc_string = "/home/somebody/model.py, line 3\n" * 100
        entry = node.metadata_props.add()
        entry.key, entry.value = "stack_trace", "/home/somebody/model.py" * 100
    model.graph.initializer.append(numpy_helper.from_array(np.ones((300, 300), np.float32), "unused"))
    (tmp_path / "source").mkdir()
    save(model, tmp_path / "source" / "traced.onnx")
    samples = subjects("mlp").samples
    traced = Subject.of("traced", tmp_path / "source" / "traced.onnx", samples, "accuracy")
    assert b"somebody" not in encode(traced, "int8-dynamic").path.read_bytes()
    assert encode(traced, "int8-dynamic").size == encode(subjects("mlp"), "int8-dynamic").size


def test_external_weights_and_old_opsets_are_read(
    subjects: Callable[[str], Subject], encode: Encode, tmp_path: Path
) -> None:
    plain, folder = subjects("mlp"), tmp_path / "source"
    folder.mkdir()
    onnx.save_model(
        plain.graph.load(), str(folder / "beside.onnx"), save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    old = plain.graph.load()
    old.opset_import[0].version = 11
    save(old, folder / "old.onnx")
    wanted = predict(encode(plain, "int8-dynamic"), plain.samples.test.feeds)
    for name in ("beside", "old"):
        subject = Subject.of(name, folder / f"{name}.onnx", plain.samples, "accuracy")
        found = encode(subject, "int8-dynamic")
        np.testing.assert_allclose(predict(found, plain.samples.test.feeds), wanted, atol=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == ["beside.onnx", "old.onnx", "weights.bin"]


@pytest.mark.parametrize("name", ["fp16", "int8-dynamic", "int8-static", "int8-mixed", "weights"])
def test_a_model_too_large_for_one_message_has_its_weights_beside_it_and_answers_alike(
    name: str, subjects: Callable[[str], Subject], encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subjects("mlp")
    wanted = predict(encode(subject, name), subject.samples.test.feeds)
    monkeypatch.setattr(running, "MAX_SINGLE", 20_000)  # bytes, instead of 2 GB
    monkeypatch.setattr(preparing, "save", partial(save, most=20_000))
    found = encode(subject, name)
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert found.size == sum(path.stat().st_size for path in found.path.parent.iterdir())
    np.testing.assert_array_equal(predict(found, subject.samples.test.feeds), wanted)


# ------------------------------------------------------------------ ranges


def test_entropy_cuts_a_lonely_outlier_and_leaves_an_even_spread_alone() -> None:
    random = np.random.default_rng(1)
    values = np.abs(random.normal(size=100_000))
    bell = np.histogram(np.append(values, 60.0), 2048, (0, 60.0))[0]
    assert 2.5 < entropy_limit(bell, 60.0, 128) < 12.0
    even = np.histogram(random.random(100_000), 2048, (0, 1.0))[0]
    assert entropy_limit(even, 1.0, 128) > 0.9


def test_percentile_limits_are_those_of_the_sample() -> None:
    values = np.random.default_rng(2).normal(size=200_000)
    counts, edges = np.histogram(values, 2048)
    low, high = percentile_limits(counts, (edges[0], edges[-1]), 99.0)
    width = edges[1] - edges[0]
    assert low == pytest.approx(np.percentile(values, 0.5), abs=2 * width)
    assert high == pytest.approx(np.percentile(values, 99.5), abs=2 * width)


def test_cutting_outliers_helps_where_few_activations_are_large(tmp_path: Path, encode: Encode) -> None:
    random, one = np.random.default_rng(4), made.Writer()
    first = random.normal(size=(32, 64)).astype(np.float32)
    seen = one.then("Relu", one.then("MatMul", "x", one.weight(first)))
    one.then("MatMul", seen, one.weight(random.normal(size=(64, 8)).astype(np.float32)), out="y")
    save(one.model({"x": (TensorProto.FLOAT, ["rows", 32])}, "y"), tmp_path / "heavy.onnx")
    x = random.normal(size=(600, 32)).astype(np.float32)
    x[:3] *= 60  # in the first third of the training rows only
    subject = Subject.of("heavy", tmp_path / "heavy.onnx", made.parts({"x": x}, np.zeros(600)), "rmse")
    errors = {
        calibration: error(
            subject, encode(subject, "int8-static", calibration=calibration, percentile=99.5, rows=512)
        )
        for calibration in ("minmax", "entropy", "percentile")
    }
    assert errors["entropy"] < 0.5 * errors["minmax"]
    assert errors["percentile"] < 0.5 * errors["minmax"]


# ------------------------------------------------------------------ layers that hurt


def sensitive(folder: Path) -> Subject:
    """Six products in a row, one of which has a weight so large in each column that the rest of it is rounded away."""
    random, one = np.random.default_rng(8), made.Writer()
    value = "x"
    for place in range(6):
        matrix = random.normal(size=(48, 48)) / np.sqrt(48)
        if place == 3:
            matrix[5] *= 300
            value = one.then("Mul", value, one.weight((np.arange(48) != 5).astype(np.float32)))
        value = one.then("MatMul", value, one.weight(matrix.astype(np.float32), f"w{place}"))
        value = one.then("Tanh", value)
    one.then("MatMul", value, one.weight(random.normal(size=(48, 5)).astype(np.float32)), out="y")
    model = one.model({"x": (TensorProto.FLOAT, ["rows", 48])}, "y")
    save(model, folder / "sensitive.onnx")
    x = random.normal(size=(900, 48)).astype(np.float32)
    return Subject.of(
        "sensitive", folder / "sensitive.onnx", made.parts({"x": x}, answers(model, {"x": x}, folder).argmax(1)),
        "accuracy",
    )  # fmt: skip


@pytest.mark.parametrize("base", ["dynamic", "static"])
def test_the_layer_that_hurts_is_found_and_kept(base: str, tmp_path: Path, encode: Encode) -> None:
    subject, notes = sensitive(tmp_path), Kept()
    (hurt,) = [node.name for node in subject.graph.load().graph.node if "w3" in node.input]
    plain = encode(subject, f"int8-{base}")

    found = encode(subject, "int8-mixed", notes, base=base, error=0.06, loss=0.05)

    assert notes.said["kept_layers"] == hurt
    assert notes.said["ranking"].startswith(f"{hurt} ")
    assert notes.figures["harm"][0] > 3 * notes.figures["harm"][1]
    assert notes.figures["within"] == [1.0]
    assert notes.figures["trials"] == [1 + 7 + 1]
    assert error(subject, found) < 0.3 * error(subject, plain)
    assert plain.size < found.size < plain.size + 48 * 48 * 4


def test_nothing_is_tried_where_plain_int8_is_good_enough_and_the_best_is_kept_where_nothing_is(
    subjects: Callable[[str], Subject], tmp_path: Path, encode: Encode
) -> None:
    easy, notes = subjects("mlp"), Kept()
    assert encode(easy, "int8-mixed", notes).digest == encode(easy, "int8-dynamic").digest
    assert notes.figures["trials"] == [1.0]
    hard, notes = sensitive(tmp_path), Kept()
    encode(hard, "int8-mixed", notes, error=1e-6, keep=2, trials=3)
    assert notes.figures["within"] == [0.0]
    assert notes.figures["trials"] == [1 + 3 + 2]
    assert notes.figures["trial_error"][0] < notes.figures["plain_error"][0]


def test_layers_are_judged_by_rows_that_calibrate_nothing_and_never_by_held_out_rows(tmp_path: Path) -> None:
    train = sensitive(tmp_path).samples.train
    calibrating, judging = split(train, 256, 512, 7)
    assert len(calibrating) == 256
    assert len(judging) == len(train) - 256
    assert not calibrating.marks() & judging.marks()
    assert calibrating.marks() | judging.marks() == train.marks()
    assert [len(one) for one in split(train.take(np.arange(20)), 256, 512, 7)] == [10, 10]


# ------------------------------------------------------------------ outliers


def test_smoothing_changes_no_answer_before_rounding(
    subjects: Callable[[str], Subject], tmp_path: Path
) -> None:
    subject = subjects("outliers")
    model = prepare(subject.graph, tmp_path, "smooth")
    feeds = subject.samples.train.feeds
    before = answers(model, feeds, tmp_path)
    names = list(dict.fromkeys(one.source for one in layers(model, ["MatMul"])))
    seen = channels(model, names, feeds, tmp_path)
    folded, _ = smooth(model, seen, 0.5)
    assert folded >= 4  # the four normalisations
    after = answers(model, feeds, tmp_path)
    np.testing.assert_allclose(after, before, atol=1e-4 * float(np.abs(before).max()))
    smoothed = channels(model, [name for name in names if name in seen], feeds, tmp_path)
    stretched = [name for name, one in seen.items() if one.largest.max() > 30 * np.median(one.largest)]
    assert stretched
    for name in stretched:
        largest = smoothed[name].largest
        assert largest.max() < 0.3 * 40 * np.median(largest)


@pytest.mark.parametrize("base", ["dynamic", "static"])
def test_smoothing_beats_plain_where_channels_stand_out(
    base: str, subjects: Callable[[str], Subject], encode: Encode
) -> None:
    subject = subjects("outliers")
    settings = {"rows": 64} if base == "static" else {}
    plain, smoothed = (
        encode(subject, f"int8-{base}", **settings), encode(subject, "int8-smooth", base=base, rows=64)
    )  # fmt: skip
    assert error(subject, smoothed) < 0.2 * error(subject, plain)
    assert smoothed.size < 1.01 * plain.size


def test_an_input_that_nothing_can_take_the_division_from_gets_a_product_of_its_own(
    tmp_path: Path, encode: Encode
) -> None:
    random, one = np.random.default_rng(6), made.Writer()
    stretch = np.where(np.arange(32) == 4, 50.0, 1.0).astype(np.float32)
    gated = one.then("Mul", one.then("Sigmoid", "x"), "x")
    one.then(
        "MatMul",
        gated,
        one.weight((random.normal(size=(32, 16)) / stretch[:, None]).astype(np.float32)),
        out="y",
    )
    save(one.model({"x": (TensorProto.FLOAT, ["rows", 32])}, "y"), tmp_path / "gated.onnx")
    x = random.normal(size=(300, 32)).astype(np.float32) * stretch
    subject = Subject.of("gated", tmp_path / "gated.onnx", made.parts({"x": x}, np.zeros(300)), "rmse")
    notes, without = Kept(), encode(subject, "int8-smooth", insert=False)
    found = encode(subject, "int8-smooth", notes)
    assert notes.figures["inserted_products"] == [1.0]
    assert without.digest == encode(subject, "int8-dynamic").digest
    assert error(subject, found) < 0.3 * error(subject, without)


# ------------------------------------------------------------------ blocks of weights


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_are_as_near_as_their_bits_allow(bits: int, symmetric: bool) -> None:
    rows = np.random.default_rng(3).normal(size=(50, 100)).astype(np.float32)
    plain, searched = (to_blocks(rows, bits, 32, symmetric, one) for one in (False, True))
    assert plain.values().shape == rows.shape
    padded = np.pad(rows, ((0, 0), (0, 28))).reshape(50, 4, 32)
    span = padded.max(-1) - padded.min(-1) if not symmetric else 2 * np.abs(padded).max(-1)
    step_size = span / (2**bits - 1)
    gone = np.abs(np.pad(plain.values() - rows, ((0, 0), (0, 28))).reshape(50, 4, 32)).max(-1)
    # Half a step, a rounded zero point (half a step more), one end that symmetric integers lack, a scale in float16.
    assert (gone <= 1.6 * step_size).all()
    lost = [float(((one.values() - rows) ** 2).sum()) for one in (plain, searched)]
    assert lost[1] < lost[0]


def test_blocks_of_zeros_of_one_sign_and_of_tiny_numbers_come_back() -> None:
    tiny = np.full((1, 32), 3e-7, np.float32)
    for rows in (np.zeros((2, 32), np.float32), np.full((2, 32), -3.0, np.float32), tiny):
        for symmetric in (True, False):
            found = to_blocks(rows, 8, 32, symmetric, search=True).values()
            np.testing.assert_allclose(found, rows, rtol=0.01)


def test_error_is_spent_where_inputs_are_small(subjects: Callable[[str], Subject], encode: Encode) -> None:
    random = np.random.default_rng(9)
    rows = random.normal(size=(40, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 8 == 0, 100.0, 1.0)
    lost = [
        float((importance * (to_blocks(rows, 4, 32, False, True, given).values() - rows) ** 2).sum())
        for given in (None, importance)
    ]
    assert lost[1] < 0.9 * lost[0]
    subject = subjects("outliers")
    plain, moved = (encode(subject, "weights", alpha=alpha) for alpha in (0.0, 0.5))
    assert error(subject, moved) < 0.8 * error(subject, plain)


@pytest.mark.parametrize(
    ("kind", "name", "stored", "gone"),
    [
        ("cnn", "weights", "BitShift", {"BitShift", "Mod", "Concat", "Sub", "Cast", "Slice"}),
        ("recurrent", "weights", "BitShift", {"BitShift", "Mod", "Concat", "Sub", "Cast", "Slice"}),
        ("transformer", "fp16", "Cast", {"Cast"}),
        ("mlp", "weights", "Cast", {"Cast"}),
    ],
)  # fmt: skip
def test_what_is_only_stored_small_is_unpacked_once_when_the_file_is_loaded(
    kind: str, name: str, stored: str, gone: set[str],
    subjects: Callable[[str], Subject], encode: Encode, tmp_path: Path,
) -> None:  # fmt: skip
    found = encode(subjects(kind), name)
    assert stored in found.operators
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(found.path), options, providers=["CPUExecutionProvider"])
    running_nodes = {node.op_type for node in onnx.load(str(tmp_path / "loaded.onnx")).graph.node}
    assert running_nodes and not running_nodes & gone


def test_a_gemm_with_factors_becomes_the_same_product(tmp_path: Path) -> None:
    random, one = np.random.default_rng(2), made.Writer()
    matrix, bias = random.normal(size=(6, 9)).astype(np.float32), random.normal(size=6).astype(np.float32)
    one.then(
        "Gemm", "x", one.weight(matrix), one.weight(bias), out="y", alpha=0.5, beta=2.0, transB=1
    )  # fmt: skip
    model = one.model({"x": (TensorProto.FLOAT, ["rows", 9])}, "y")
    x = random.normal(size=(4, 9)).astype(np.float32)
    split_gemms(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Mul", "Add"]
    np.testing.assert_allclose(answers(model, {"x": x}, tmp_path), 0.5 * x @ matrix.T + 2 * bias, rtol=1e-5)


# ------------------------------------------------------------------ half precision


def test_a_weight_beyond_float16_stays_and_so_do_nodes_whose_activations_overflow(
    tmp_path: Path, encode: Encode
) -> None:
    random, one = np.random.default_rng(7), made.Writer()
    large = random.normal(size=(16, 16)).astype(np.float32)
    large[0, 0] = 1e5
    seen = one.then("MatMul", "x", one.weight(large))
    seen = one.then(
        "Tanh", one.then("MatMul", seen, one.weight(random.normal(size=(16, 16)).astype(np.float32)))
    )
    one.then("MatMul", seen, one.weight(random.normal(size=(16, 8)).astype(np.float32)), out="y")
    save(one.model({"x": (TensorProto.FLOAT, ["rows", 16])}, "y"), tmp_path / "large.onnx")
    x = random.normal(size=(300, 16)).astype(np.float32)
    subject = Subject.of("large", tmp_path / "large.onnx", made.parts({"x": x}, np.zeros(300)), "rmse")
    for compute in ("float32", "float16"):
        notes = Kept()
        found = encode(subject, "fp16", notes, compute=compute)
        assert notes.figures["weights_kept"] == [1.0]
        assert (notes.figures["nodes_kept"][0] > 0) is (compute == "float16")
        assert np.isfinite(predict(found, subject.samples.test.feeds)).all()
        assert error(subject, found) < 0.01


def test_the_same_bytes_come_out_of_another_process(
    subjects: Callable[[str], Subject], encode: Encode, tmp_path: Path
) -> None:
    subject = subjects("cnn")
    rows = {
        f"{name}_{part}": values
        for part in ("train", "validation", "test")
        for name, values in (
            ("x", getattr(subject.samples, part).feeds["x"]),
            ("y", getattr(subject.samples, part).y),
        )
    }
    np.savez(tmp_path / "rows.npz", **rows)
    script = (
        "import hashlib, sys, numpy as np\nfrom pathlib import Path\n"
        "from loopwright.compression.steps import Work, step\n"
        "from loopwright.compression.subject import Rows, Samples, Subject\n"
        "graph, rows, at = Path(sys.argv[1]), np.load(sys.argv[2]), Path(sys.argv[3])\n"
        "parts = [Rows({'x': rows[f'x_{one}']}, rows[f'y_{one}']) for one in ('train', 'validation', 'test')]\n"
        "one = Subject.of('cnn', graph, Samples(*parts), 'accuracy')\n"
        "made = step('int8-static', {}).encode(one.graph, at / 'model.onnx', Work(one, at, at))\n"
        "assert 'torch' not in sys.modules\n"
        "print(hashlib.sha256(made.path.read_bytes()).hexdigest())\n"
    )
    root = Path(__file__).parents[3]
    (tmp_path / "there").mkdir()
    said = subprocess.run(
        [sys.executable, "-c", script, str(subject.graph.path), str(tmp_path / "rows.npz"), str(tmp_path / "there")],
        cwd=root, env={"PYTHONHASHSEED": "77", "PATH": "", "PYTHONPATH": str(root / "src")},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    here = encode(subject, "int8-static").path.read_bytes()
    assert said.stdout.strip() == hashlib.sha256(here).hexdigest()
