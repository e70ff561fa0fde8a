"""Weights streamed: what is written is what memory would have held; and the check with a billion parameters."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from loopwright.compression.artefact import Artefact
from loopwright.compression.peak import Peak
from loopwright.compression.recipe import Recipe
from loopwright.compression.steps import GraphStep, Work
from loopwright.compression.streaming import check
from loopwright.compression.streaming.check import BillionReport, run_check
from loopwright.compression.streaming.encoding import encode_blocks, packed
from loopwright.compression.streaming.narrowing import Layout, choose, encoded_size, narrow, plan
from loopwright.compression.streaming.quantizing import quantize_streamed
from loopwright.compression.streaming.transformer import Shape, forward, tensors, write_random
from loopwright.compression.streaming.weights import Weights, Written, in_one_file
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.progress import Silent

pytestmark = pytest.mark.unit

SHAPE = Shape(layers=4, hidden=128, heads=2, ffn=192, vocabulary=301, positions=40)
Array = np.ndarray[Any, Any]


class Heard(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small transformer with its weights beside it."""
    path = tmp_path_factory.mktemp("whole") / "model.onnx"
    write_random(SHAPE, path, seed=3)
    return path


def ids_of(shape: Shape, rows: int = 3, length: int = 9) -> Array:
    return np.random.default_rng(5).integers(0, shape.vocabulary, (rows, length))


def asked(path: Path, ids: Array, mask: Array | None = None) -> Array:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
    found: Array = session.run(None, feeds)[0]
    return found


def one_node(path: Path, node: onnx.NodeProto, weights: Mapping[str, Array], opset: int = 20) -> Path:
    """A graph of `node` alone, from `x` (a matrix, or for Gather places) to `y`, with `weights` beside it."""
    kind = TensorProto.INT64 if node.op_type == "Gather" else TensorProto.FLOAT
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", kind, ["rows", "columns"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    return path


def answer(path: Path, x: Array) -> Array:
    found: Array = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


def normal(*dims: int) -> Array:
    return np.random.default_rng(11).standard_normal(dims).astype(np.float32)


def cosine(a: Array, b: Array) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


# What is written


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path, whole: Path) -> None:
    for seed in (3, 4):
        write_random(SHAPE, tmp_path / f"{seed}.onnx", seed)
    beside = whole.with_name("model.onnx.data").read_bytes()
    assert (tmp_path / "3.onnx.data").read_bytes() == beside
    assert (tmp_path / "4.onnx.data").read_bytes() != beside
    assert Weights.open(whole).read("layer1.up").std() == pytest.approx(128**-0.5, rel=0.02)


def test_the_graph_answers_as_numpy_does_with_padding_and_without(whole: Path) -> None:
    ids = ids_of(SHAPE)
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    for seen in (None, mask):
        np.testing.assert_allclose(
            asked(whole, ids, seen), forward(Weights.open(whole), ids, seen), atol=2e-5
        )
    alone = asked(whole, ids[1:2, :4])
    np.testing.assert_allclose(asked(whole, ids, mask)[1, :4], alone[0], atol=2e-5)


def test_an_error_while_writing_leaves_the_model_that_was_there(tmp_path: Path, whole: Path) -> None:
    target = tmp_path / "model.onnx"
    quantize_streamed(whole, target)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), Written(target) as written:
        written.add("half", TensorProto.FLOAT, (10_000,), [normal(10_000)])
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="40000"), Written(target) as written:
        written.add("short", TensorProto.FLOAT, (10_000,), [normal(9_999)])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    path, rows, width = tmp_path / "large.onnx", 8192, 8192
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[rows, width], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "large.data"), ("offset", "0"), ("length", str(4 * rows * width))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", rows), ("y", width))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight]
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    )
    with (tmp_path / "large.data").open("wb") as stream:
        stream.truncate(4 * rows * width)  # zeros that take no room on the disk
    with Peak() as peak:
        made = quantize_streamed(path, tmp_path / "small.onnx", durable=False)
    assert rows * width < made.size < rows * width * 1.01
    assert peak.mb - peak.held_mb < 0.5 * 4e-6 * rows * width


def test_a_model_in_two_files_becomes_the_same_in_one(tmp_path: Path, whole: Path) -> None:
    target = tmp_path / "model.onnx"
    apart = quantize_streamed(whole, target, bits=4)
    before = onnx.load(str(target))
    ids = ids_of(SHAPE)
    answers = asked(target, ids)
    made = in_one_file(target)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert made.size < apart.size and made.parameters == apart.parameters
    after = onnx.load(str(target))
    assert before.graph.node == after.graph.node
    raw = [{one.name: one.raw_data for one in model.graph.initializer} for model in (before, after)]
    assert raw[0] == raw[1]
    np.testing.assert_array_equal(asked(target, ids), answers)


def test_a_recipe_may_stream(tmp_path: Path, whole: Path) -> None:
    recipe = Recipe.from_json("large", [{"step": "streamed", "bits": 8, "embeddings": False}])
    assert recipe.bits == 8
    work = Work(cast(Any, None), tmp_path, tmp_path)
    made = cast(GraphStep, recipe.steps[0]).encode(Artefact.open(whole), tmp_path / "model.onnx", work)
    quantize_streamed(whole, tmp_path / "direct.onnx", tables=False)
    ids = ids_of(SHAPE)
    np.testing.assert_array_equal(asked(made.path, ids), asked(tmp_path / "direct.onnx", ids))
    assert not made.beside()
    with pytest.raises(BadInput, match="4 or 8"):
        Recipe.from_json("small", [{"step": "streamed", "bits": 2}])


# 8 bits


def test_eight_bits_are_those_of_onnx_runtime(tmp_path: Path, whole: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        whole, tmp_path / "theirs.onnx", op_types_to_quantize=["MatMul"], per_channel=True,
        weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    quantize_streamed(whole, tmp_path / "ours.onnx", tables=False)
    theirs = onnx.load(str(tmp_path / "theirs.onnx"))
    ours = onnx.load(str(tmp_path / "ours.onnx"))
    codes = {one.name: numpy_helper.to_array(one) for one in ours.graph.initializer}
    compared = 0
    for one in theirs.graph.initializer:
        if one.name.endswith(("_quantized", "_scale")):
            np.testing.assert_array_equal(numpy_helper.to_array(one), codes[one.name], err_msg=one.name)
            compared += 1
    assert compared == 2 * 6 * SHAPE.layers
    ids = ids_of(SHAPE)
    np.testing.assert_allclose(
        asked(tmp_path / "ours.onnx", ids), asked(tmp_path / "theirs.onnx", ids), atol=1e-5
    )


def test_the_whole_transformer_in_eight_bits_is_near_four_times_smaller(tmp_path: Path, whole: Path) -> None:
    made = quantize_streamed(whole, tmp_path / "small.onnx")
    ids = ids_of(SHAPE)
    parent = forward(Weights.open(whole), ids)
    assert "MatMulInteger" in made.operators
    assert Weights.open(whole).bytes("tokens") / made.size > 0.2
    assert cosine(asked(made.path, ids), parent) > 0.9995
    assert made.size <= encoded_size(SHAPE, 8) < 1.1 * made.size


def test_a_table_has_a_scale_for_each_row(tmp_path: Path) -> None:
    table = normal(50, 24) * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    path = one_node(tmp_path / "m.onnx", helper.make_node("Gather", ["w", "x"], ["y"]), {"w": table})
    places = np.arange(50)[None]
    found = answer(quantize_streamed(path, tmp_path / "q.onnx").path, places)[0]
    assert (np.abs(found - table) <= np.abs(table).max(1, keepdims=True) / 127 * 0.501).all()


def test_reduced_range_uses_seven_bits(tmp_path: Path) -> None:
    path = one_node(tmp_path / "m.onnx", helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": normal(64, 32)})
    quantize_streamed(path, tmp_path / "q.onnx", reduce_range=True)
    weights = onnx.load(str(tmp_path / "q.onnx")).graph.initializer
    assert (
        np.abs(numpy_helper.to_array(next(one for one in weights if one.name == "w_quantized"))).max() == 63
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("turned", [0, 1])
def test_gemm_keeps_its_bias_and_its_side(tmp_path: Path, bits: int, turned: int) -> None:
    weight, bias, x = normal(72, 40), normal(40) * 5, normal(7, 72)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=turned)
    path = one_node(tmp_path / "m.onnx", node, {"w": weight.T.copy() if turned else weight, "b": bias})
    found = answer(quantize_streamed(path, tmp_path / "q.onnx", bits=bits).path, x)
    assert cosine(found - bias, x @ weight) > (0.99 if bits == 4 else 0.9995)


def test_a_tied_table_is_written_once_for_each_use(tmp_path: Path) -> None:
    table = normal(200, 64)
    nodes = [
        helper.make_node("Gather", ["w", "x"], ["rows"]),
        helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "w_t"], ["y"]),
    ]
    path = one_node(tmp_path / "m.onnx", nodes[0], {"w": table})
    model = onnx.load(str(path))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save_model(model, str(path), save_as_external_data=True, location="tied.data", size_threshold=0)
    places = np.arange(0, 200, 9)[None]
    made = quantize_streamed(path, tmp_path / "q.onnx")
    assert made.size < 0.7 * table.nbytes and "Transpose" not in made.operators
    assert cosine(answer(made.path, places), table[places] @ table.T) > 0.9995


# 4 bits


@given(arrays(np.float32, (3, 40), elements=st.floats(-100, 100, width=32)), st.sampled_from([16, 32]))
def test_four_bits_are_within_one_step_and_packed_low_half_first(values: Array, block: int) -> None:
    codes, scales = encode_blocks(values, block)
    decoded = ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(3, -1)[:, :40]
    steps = np.repeat(np.abs(scales), block, axis=1)[:, :40]
    assert (np.abs(decoded - values) <= steps * 1.0001 + 1e-30).all()
    halves = packed(codes)
    assert (halves & 15 == codes[..., ::2]).all() and (halves >> 4 == codes[..., 1::2]).all()


def test_four_bits_answer_as_their_weights_do(tmp_path: Path, whole: Path) -> None:
    made = quantize_streamed(whole, tmp_path / "small.onnx", bits=4)
    assert {"MatMulNBits", "GatherBlockQuantized"} <= made.operators
    assert made.size <= encoded_size(SHAPE, 4) < 1.2 * made.size
    source = Weights.open(whole)
    decoded = tmp_path / "decoded.onnx"
    with Written(decoded) as written:
        kept = [one for name, one in source.tensors.items() if name not in dict(tensors(SHAPE))]
        for name, dims in tensors(SHAPE):
            values = source.read(name)
            if len(dims) == 2:
                turn = name in ("tokens", "positions")
                codes, scales = encode_blocks(values if turn else values.T, 32)
                flat = ((codes.astype(np.float32) - 8) * scales[..., None]).reshape(len(scales), -1)
                values = flat[:, : dims[1]] if turn else flat[:, : dims[0]].T
            kept.append(written.add(name, TensorProto.FLOAT, dims, [values]))
        model = onnx.ModelProto()
        model.CopyFrom(source.model)
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        written.finish(model)
    ids = ids_of(SHAPE)
    found = asked(made.path, ids)
    assert cosine(found, forward(Weights.open(decoded), ids)) > 0.9995
    assert cosine(found, forward(source, ids)) > 0.98


# Bad input


def test_what_cannot_be_quantized_says_why(tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    good = one_node(tmp_path / "good.onnx", product, {"w": normal(64, 32)})
    holed = normal(64, 32)
    holed[3, 4] = np.nan
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (good, {"bits": 3}, "4 or 8"),
        (good, {"bits": 4, "block": 24}, "16, 32"),
        (good, {"exclude": ["v"]}, "got v"),
        (good, {"exclude": ["w"]}, "nothing to quantize"),
        (one_node(tmp_path / "nan.onnx", product, {"w": holed}), {}, "no numbers"),
        (one_node(tmp_path / "old.onnx", product, {"w": normal(64, 32)}, opset=12), {}, "13 or later"),
        (
            one_node(tmp_path / "relu.onnx", helper.make_node("Relu", ["x"], ["y"]), {}),
            {},
            "nothing to quantize",
        ),
    ]
    for path, settings, said in cases:
        with pytest.raises(BadInput, match=said):
            quantize_streamed(path, tmp_path / "target.onnx", **settings)
    with pytest.raises(BadInput, match="onto itself"):
        quantize_streamed(good, good)
    good.rename(tmp_path / "other.onnx")  # its weights stay where a target of the old name would be written
    with pytest.raises(BadInput, match="onto itself"):
        quantize_streamed(tmp_path / "other.onnx", good)
    (tmp_path / "other.onnx").rename(good)
    with (tmp_path / "good.onnx.data").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(BadInput, match="cut short"):
        quantize_streamed(good, tmp_path / "target.onnx")
    assert not list(tmp_path.glob("*target*"))


def test_what_stays_is_said(tmp_path: Path) -> None:
    path = one_node(tmp_path / "m.onnx", helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": normal(64, 32)})
    model = onnx.load(str(path))
    for name, kind in (("added", np.float32), ("half", np.float16)):
        model.graph.initializer.append(numpy_helper.from_array(normal(32, 32).astype(kind), name))
    model.graph.node.append(helper.make_node("MatMul", ["y", "added"], ["z"]))
    model.graph.node.append(helper.make_node("Add", ["z", "added"], ["u"]))
    model.graph.node.append(helper.make_node("Cast", ["half"], ["h"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Sub", ["u", "h"], ["v"]))
    model.graph.output[0].name = "v"
    onnx.save(model, str(path))
    heard = Heard()
    made = quantize_streamed(path, tmp_path / "q.onnx", watch=heard)
    assert [note.split(" stays")[0] for note in heard.notes] == ["added", "half"]
    x = normal(32, 64)
    assert cosine(answer(made.path, x), answer(path, x)) > 0.9995


# Narrowing


def planted(source: Path, target: Path) -> tuple[Array, Shape]:
    """`source` with half of each dimension's weights zero on one side, and the hidden dimensions that are not."""
    random = np.random.default_rng(2)
    alive = np.sort(random.choice(SHAPE.hidden, 64, replace=False))
    weights = Weights.open(source)
    dead = np.setdiff1d(np.arange(SHAPE.hidden), alive)
    with Written(target) as written:
        stored = [one for name, one in weights.tensors.items() if name not in dict(tensors(SHAPE))]
        for name, dims in tensors(SHAPE):
            values = weights.read(name).copy()
            layer, _, role = name.removeprefix("layer").partition(".")
            if role in ("o", "down") or name in ("tokens", "positions"):
                values[:, dead] = 0
            if role in ("o", "down") and layer in "13":
                values[:] = 0
            if role == "v":
                values[:, :64] = 0
            if role == "down":
                values[random.choice(SHAPE.ffn, 128, replace=False)] = 0
            stored.append(written.add(name, TensorProto.FLOAT, dims, [values]))
        model = onnx.ModelProto()
        model.CopyFrom(weights.model)
        del model.graph.initializer[:]
        model.graph.initializer.extend(stored)
        written.finish(model)
    return alive, replace(SHAPE, layers=2, hidden=64, heads=1, ffn=64)


def test_what_weighs_nothing_leaves_without_a_change_in_the_answers(tmp_path: Path, whole: Path) -> None:
    alive, keep = planted(whole, tmp_path / "planted.onnx")
    made, kept = narrow(tmp_path / "planted.onnx", tmp_path / "narrow.onnx", SHAPE, keep)
    assert kept.layers.tolist() == [0, 2] and kept.hidden.tolist() == alive.tolist()
    assert [heads.tolist() for heads in kept.heads] == [[1], [1]] and kept.energy == pytest.approx(1)
    assert made.parameters == pytest.approx(keep.parameters, abs=20)  # constants of the graph
    ids = ids_of(SHAPE)
    np.testing.assert_allclose(
        asked(made.path, ids), asked(tmp_path / "planted.onnx", ids)[..., alive], atol=1e-4
    )
    np.testing.assert_allclose(asked(made.path, ids), forward(Weights.open(made.path), ids), atol=2e-5)


def test_the_largest_by_what_they_read_and_write_stay(whole: Path) -> None:
    weights = Weights.open(whole)
    kept = choose(weights, SHAPE, replace(SHAPE, layers=3, ffn=64), Layout())
    norms = {}
    for layer in range(SHAPE.layers):
        up, down = weights.read(f"layer{layer}.up"), weights.read(f"layer{layer}.down")
        value, output = weights.read(f"layer{layer}.v"), weights.read(f"layer{layer}.o")
        units = np.linalg.norm(up, axis=0) * np.linalg.norm(down, axis=1)
        heads = [
            np.linalg.norm(value[:, at : at + 64]) * np.linalg.norm(output[at : at + 64]) for at in (0, 64)
        ]
        norms[layer] = float(np.sum(np.square(units)) + np.sum(np.square(heads)))
        if layer in kept.layers:
            stay = kept.ffn[kept.layers.tolist().index(layer)]
            assert set(stay) == set(np.argsort(units)[-64:])
    assert set(kept.layers) == set(sorted(norms, key=norms.__getitem__)[1:])


def test_another_graph_is_narrowed_by_its_own_names(tmp_path: Path, whole: Path) -> None:
    names = {role: f"encoder/{role}/W" for role in ("tokens", "positions", "norm")}
    names |= {
        role: f"block.{{layer}}.{role}.weight"
        for role in ("norm1", "q", "k", "v", "o", "norm2", "up", "down")
    }
    layout = Layout(names, "stream/{layer}")
    own = {
        Layout().roles[role].format(layer=layer): names[role].format(layer=layer)
        for role in names
        for layer in range(4)
    }
    own |= {f"residual{layer}": f"stream/{layer}" for layer in range(5)}
    model = onnx.load(str(whole))
    for tensor in model.graph.initializer:
        tensor.name = own.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [own.get(name, name) for name in node.input]
        node.output[:] = [own.get(name, name) for name in node.output]
    onnx.save_model(model, str(tmp_path / "named.onnx"))
    keep = replace(SHAPE, layers=3, hidden=64, heads=1, ffn=128)
    made, _ = narrow(tmp_path / "named.onnx", tmp_path / "narrow.onnx", SHAPE, keep, layout=layout)
    narrow(whole, tmp_path / "same.onnx", SHAPE, keep)
    ids = ids_of(SHAPE)
    np.testing.assert_array_equal(asked(made.path, ids), asked(tmp_path / "same.onnx", ids))


def test_a_plan_is_as_large_as_the_target_allows_and_no_larger() -> None:
    shape = Shape.about(10**9)
    assert 10**9 <= shape.parameters < 1.06e9
    for bits in (4, 8):
        sizes = [encoded_size(plan(shape, target, bits), bits) for target in (10**8, 3 * 10**8)]
        assert 0.98e8 < sizes[0] <= 1e8 and 2.95e8 < sizes[1] <= 3e8
    assert plan(shape, 10**10) == shape
    with pytest.raises(BadInput, match="vocabulary of 32,768"):
        plan(shape, 10**6)


def test_narrowing_says_what_does_not_fit(tmp_path: Path, whole: Path) -> None:
    for shape, keep, layout, said in (
        (SHAPE, replace(SHAPE, vocabulary=300), Layout(), "vocabulary"),
        (SHAPE, replace(SHAPE, heads=3), Layout(), "at most 2"),
        (replace(SHAPE, ffn=256), SHAPE, Layout(), "hidden × ffn"),
        (SHAPE, SHAPE, Layout(residual="stream{layer}"), "stream0"),
    ):
        with pytest.raises(BadInput, match=said):
            narrow(whole, tmp_path / "narrow.onnx", shape, keep, layout=layout)
    with pytest.raises(BadInput, match="no up"):
        Layout({role: name for role, name in Layout().roles.items() if role != "up"})
    assert not list(tmp_path.iterdir())


# The check


SMALL: dict[str, Any] = {"parameters": 600_000, "target": 320_000, "threads": 1, "tokens": 8}


def test_the_check_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    report = run_check(tmp_path, **SMALL, latency_ms=1e-6)
    assert report.size <= 320_000 < report.narrowed_size < report.original_size
    assert report.original_parameters >= 600_000 and len(report.layers) == report.kept.layers
    assert report.cosine > 0.999 and 0 < report.p50 <= report.p99 and report.cpu_ms > 0
    assert [stage.name for stage in report.stages] == ["create", "narrow", "quantize", "measure"]
    assert report.peak_mb == max(stage.peak_mb for stage in report.stages) + report.caller_mb
    assert list(report.misses) == ["latency"]
    text = report.to_text()
    assert "MISSED" in text and "RANDOM weights" in text and "nothing here says" in text
    assert report.to_json()["misses"] == report.misses and report.to_json()["weights"] == "random"
    assert [file.name for file in tmp_path.iterdir()] == ["billion.lock"]


def test_an_interrupted_check_goes_on_where_it_was(tmp_path: Path) -> None:
    class Impatient(Silent):
        def step(self, name: str) -> None:
            if name.startswith("INT8"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_check(tmp_path, **SMALL, watch=Impatient())
    left = sorted(file.name for file in tmp_path.rglob("*.onnx"))
    (tmp_path / "billion-0123456789ab").mkdir()
    (tmp_path / "billion-of-mine").mkdir()
    report: BillionReport = run_check(tmp_path, **SMALL)
    assert left == ["narrowed.onnx"]  # the original is gone as soon as nothing reads it any more
    assert [stage.kept for stage in report.stages] == [True, True, False, False]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["billion-of-mine", "billion.lock"]
    assert report.size <= 320_000 and all(stage.seconds > 0 for stage in report.stages)


def test_too_small_a_machine_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "check"
    with monkeypatch.context() as less:
        less.setattr(check.shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * 10**9))
        with pytest.raises(Unavailable, match=r"4 GB free, wanted 5\.\d+ GB"):
            run_check(folder)
    with monkeypatch.context() as less:
        less.setattr(check.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
        with pytest.raises(Unavailable, match=r"got 1 GB, wanted \d\.\d+ GB"):
            run_check(folder)
    for settings in ({"tokens": 513}, {"threads": 0}, {"parameters": 1000}, {"target": 1000}):
        with pytest.raises(BadInput):
            run_check(folder, **settings)
    assert not list(tmp_path.rglob("*.onnx*"))


def test_a_stage_that_is_ended_from_outside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nread line\nkill -9 $$\n")
    killed.chmod(0o755)
    with monkeypatch.context() as other:
        other.setattr(sys, "executable", str(killed))
        with pytest.raises(Unavailable, match=r"`create` was ended; got signal 9"):
            run_check(tmp_path / "check", **SMALL)
