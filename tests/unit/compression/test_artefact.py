"""What a model file is made of, and which ones are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from loopwright.compression.artefact import Artefact, Port, copy, save
from loopwright.compression.facts import facts_of, floor, kind_of
from loopwright.compression.peak import Peak
from loopwright.kernel.errors import BadInput
from tests.unit.compression.example_graphs import attention, branches, constant, linear, model_of, trees

ONES = np.ones((20, 4), np.float32)
NAN = np.full((20, 4), np.nan, np.float32)


def beside(folder: Path, values: np.ndarray, name: str = "model.onnx") -> Path:
    """A model whose weights lie beside it."""
    path = folder / name
    onnx.save_model(
        linear(values), str(path), save_as_external_data=True, location=f"{name}.data", size_threshold=0
    )
    return path


def test_size_is_every_byte_on_disk(tmp_path: Path) -> None:
    inside, outside = save(linear(ONES), tmp_path / "inside.onnx"), Artefact.open(beside(tmp_path, ONES))
    assert inside.size == (tmp_path / "inside.onnx").stat().st_size
    assert (
        outside.size
        == (tmp_path / "model.onnx").stat().st_size + (tmp_path / "model.onnx.data").stat().st_size
    )
    assert outside.size > ONES.nbytes > (tmp_path / "model.onnx").stat().st_size
    assert inside.parameters == outside.parameters == 80


def test_weights_are_counted_wherever_they_are_stored(tmp_path: Path) -> None:
    # 80 in an initializer, 4 in a constant, 3 and 2 in branches; a shape of 64-bit integers is none.
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        constant("b", np.ones(4, np.float32)),
        helper.make_node("Add", ["z", "b"], ["zb"]),
        constant("shape", np.array([-1, 4])),
        helper.make_node("Reshape", ["zb", "shape"], ["unused"]),
        branches([constant("then", np.ones(3, np.float32))], [constant("otherwise", np.ones(2, np.float16))]),
    ]
    model = model_of(nodes, {"w": ONES, "flag": np.array(True)})
    assert save(model, tmp_path / "m.onnx").parameters == 80 + 4 + 3 + 2
    # Six thresholds, those of leaves too, and four leaf values; hit rates are not learned.
    assert save(trees(), tmp_path / "trees.onnx").parameters == 6 + 4


def test_a_number_packed_in_four_bits_is_one_number(tmp_path: Path) -> None:
    packed = helper.make_node(
        "MatMulNBits", ["x", "w", "scales"], ["y"], domain="com.microsoft", K=32, N=4, bits=4, block_size=32
    )
    weights = {"w": np.zeros((4, 1, 16), np.uint8), "scales": np.ones(4, np.float32)}
    model = model_of([packed], weights, {"x": ("rows", 32)}, domains=["com.microsoft"])
    assert save(model, tmp_path / "m.onnx").parameters == 4 * 32 + 4
    bits = next(item for item in model.graph.node[0].attribute if item.name == "bits")
    bits.i = 8  # a byte each, two blocks of 16
    assert save(model, tmp_path / "m.onnx").parameters == 4 * 16 + 4


def test_a_table_of_four_bits_is_counted_behind_the_shape_it_is_read_in(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["w", "shape"], ["flat"]),
        helper.make_node(
            "GatherBlockQuantized", ["flat", "x", "scales"], ["y"], domain="com.microsoft", bits=4, block_size=16
        ),
    ]  # fmt: skip
    weights = {
        "w": np.zeros((5, 1, 8), np.uint8), "scales": np.ones((5, 1), np.float32), "shape": np.array([5, 8]),
    }  # fmt: skip
    model = model_of(nodes, weights, domains=["com.microsoft"])
    assert save(model, tmp_path / "m.onnx").parameters == 5 * 16 + 5


def test_inputs_are_told_with_type_and_shape(tmp_path: Path) -> None:
    found = save(attention(), tmp_path / "m.onnx")
    assert found.ports == (Port("ids", "int64", ("rows", "tokens")),)
    assert found.inputs == ("ids",) and found.outputs == ("y",) and "Softmax" in found.operators


def test_nan_is_found_in_every_place(tmp_path: Path) -> None:
    last = ONES.copy()
    last[-1, -1] = np.nan
    stumps = trees()
    next(one for one in stumps.graph.node[0].attribute if one.name == "target_weights").floats[2] = float(
        "nan"
    )
    multiply = helper.make_node("MatMul", ["x", "w"], ["y"])
    bad = {
        "initializer": linear(NAN),
        "constant": model_of([constant("w", last), multiply], {}),
        "half": model_of(
            [helper.make_node("Cast", ["h"], ["w"], to=1), multiply], {"h": last.astype(np.float16)}
        ),
        "branch": model_of(
            [branches([constant("then", NAN)], [constant("otherwise", ONES)])], {"flag": np.array(True)}
        ),
        "leaf": stumps,
    }
    for place, model in bad.items():
        (tmp_path / f"{place}.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BadInput, match="weights that are no numbers") as refused:
            Artefact.open(tmp_path / f"{place}.onnx")
        assert place != "constant" or refused.value.got == "1 of 80 NaN or infinite"
    with pytest.raises(BadInput, match="1 of 80"):
        Artefact.open(beside(tmp_path, last))


def test_infinity_is_a_mask_but_no_weight(tmp_path: Path) -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    add = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "mask"], ["y"])]
    found = save(model_of(add, {"w": ONES, "mask": mask}), tmp_path / "mask.onnx")
    assert found.parameters == 80 + 16
    with pytest.raises(BadInput, match="w: weights that are no numbers"):
        save(linear(ONES * np.inf), tmp_path / "weights.onnx")


def test_large_weights_beside_the_graph_are_checked_a_part_at_a_time(tmp_path: Path) -> None:
    rows = 1_500_000  # 120 MB of zeros that take no place on the disk
    model = linear(np.zeros((1, 20), np.float32), softmax=False)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.dims[:] = [rows, 20]
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(rows * 80 - 4)
    with pytest.raises(BadInput, match="cut short"):
        Artefact.open(tmp_path / "m.onnx")
    with (tmp_path / "w.bin").open("ab") as stream:
        stream.write(np.float32(0).tobytes())
    with Peak() as peak:
        assert Artefact.open(tmp_path / "m.onnx").parameters == rows * 20
    assert peak.mb - peak.held_mb < 75
    with (tmp_path / "w.bin").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(np.float32("nan").tobytes())
    with pytest.raises(BadInput, match="1 of 30000000 NaN"):
        Artefact.open(tmp_path / "m.onnx")


def test_weights_outside_the_folder_and_missing_ones_are_refused(tmp_path: Path) -> None:
    path = beside(tmp_path, ONES)
    model = onnx.load(str(path), load_external_data=False)
    (tmp_path / "model.onnx.data").rename(tmp_path.parent / "outside.data")
    with pytest.raises(BadInput, match="weights are missing"):
        Artefact.open(path)
    model.graph.initializer[0].external_data[0].value = "../outside.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="outside the model's folder"):
        Artefact.open(path)


def test_operators_of_the_users_own_are_refused_and_functions_of_the_model_are_not(tmp_path: Path) -> None:
    own = helper.make_node("Twice", ["z"], ["y"], domain="mine")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), own]
    path = tmp_path / "m.onnx"
    path.write_bytes(model_of(nodes, {"w": ONES}, domains=["mine"]).SerializeToString())
    with pytest.raises(BadInput, match=r"mine\.Twice"):
        Artefact.open(path)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    brought = model_of(nodes, {"w": ONES}, domains=["mine"], functions=[twice])
    assert "Add" in save(brought, path).operators
    hidden = branches(
        [helper.make_node("Odd", ["x"], ["then"], domain="mine")], [constant("otherwise", ONES)]
    )
    path.write_bytes(model_of([hidden], {"flag": np.array(True)}, domains=["mine"]).SerializeToString())
    with pytest.raises(BadInput, match=r"mine\.Odd"):
        Artefact.open(path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such model file"):
        Artefact.open(tmp_path / "absent.onnx")
    with pytest.raises(BadInput, match="no such model file"):
        Artefact.open(tmp_path)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BadInput, match="not an ONNX model"):
        Artefact.open(path)
    path.write_bytes(b"")
    with pytest.raises(BadInput, match="without a graph"):
        Artefact.open(path)
    with path.open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(BadInput, match="external data"):
        Artefact.open(path)


def test_a_model_past_the_limit_keeps_its_weights_beside_it(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(20, 400)).astype(np.float32)
    whole = save(linear(values), tmp_path / "whole.onnx")
    split = save(linear(values), tmp_path / "split.onnx", most=10_000)
    assert [file.name for file in split.beside()] == ["split.onnx.data"] and not whole.beside()
    assert np.array_equal(numpy_helper.to_array(split.load().graph.initializer[0]), values)
    again = save(linear(ONES), tmp_path / "split.onnx")
    assert not (tmp_path / "split.onnx.data").exists() and again.parameters == 80


def test_the_whole_digest_covers_what_lies_beside(tmp_path: Path) -> None:
    one = Artefact.open(beside(tmp_path, ONES))
    other = copy(one, tmp_path / "elsewhere" / "model.onnx")
    assert other.whole_digest() == one.whole_digest() and other.size == one.size
    (tmp_path / "elsewhere" / "model.onnx.data").write_bytes((2 * ONES).tobytes())
    changed = Artefact.open(other.path)
    assert changed.digest == one.digest and changed.whole_digest() != one.whole_digest()
    plain = save(linear(ONES), tmp_path / "plain.onnx")
    assert plain.whole_digest() == plain.digest


def test_the_kind_of_a_graph(tmp_path: Path) -> None:
    kernel = np.ones((4, 1, 3, 3), np.float32)
    convolve = [helper.make_node("Conv", ["x", "k"], ["y"])]
    gated = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    graphs = {
        "trees": trees(),
        "cnn": model_of(convolve, {"k": kernel}, {"x": ("rows", 1, 8, 8)}, ("rows", 4, 6, 6)),
        "transformer": attention(),
        "other": linear(ONES),
    }
    for kind, model in graphs.items():
        assert kind_of(save(model, tmp_path / f"{kind}.onnx")) == kind
    # A softmax that is multiplied with stored weights chooses between them; it attends to nothing.
    mixture = model_of(gated, {"w": ONES, "v": np.ones((4, 3), np.float32)})
    assert kind_of(save(mixture, tmp_path / "mixture.onnx")) == "other"


def test_the_table_that_tokens_are_looked_up_in_is_the_embedding(tmp_path: Path) -> None:
    found = facts_of(save(attention(width=8, words=30), tmp_path / "m.onnx"))
    assert found.embedding == 30 * 8 and found.largest[0] == ("table", 240)
    assert found.parameters == found.reducible == 240 + 3 * 64 + 16
    assert found.embedding_share == pytest.approx(240 / 448)


def test_a_tied_table_that_was_written_twice_is_needed_once(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    table, matrix = (draw.normal(size=size).astype(np.float32) for size in ((300, 64), (64, 64)))
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["e"]),
        helper.make_node("MatMul", ["e", "one"], ["f"]),
        helper.make_node("MatMul", ["f", "two"], ["h"]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    stored = {"table": table, "one": matrix, "two": matrix.copy(), "turned": table.T.copy()}
    model = model_of(nodes, stored, {"x": ("rows", 7)}, ("rows", 7, 300))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    found = facts_of(save(model, tmp_path / "twice.onnx"))
    assert found.repeated == 300 * 64 + 64 * 64 and found.parameters == 2 * found.repeated
    assert floor(found, 8) == 300 * 64 + 64 * 64
    other = {**stored, "two": matrix * 2, "turned": table.T * 2}
    apart = facts_of(save(model_of(nodes, other, {"x": ("rows", 7)}), tmp_path / "apart.onnx"))
    assert apart.repeated == 0 and floor(apart, 8) == apart.parameters == found.parameters


def test_the_floor_is_what_bits_allow(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    weights = {"w": np.ones((20, 400), np.float32), "b": np.ones(400, np.float32)}
    artefact = save(model_of(nodes, weights), tmp_path / "m.onnx")
    found = facts_of(artefact)
    assert (found.parameters, found.reducible) == (8400, 8000)
    assert floor(found, 32) == 8400 * 4 <= artefact.size
    # In fewer bits the bias may be halved, but is never quantized.
    assert floor(found, 8) == 8000 + 400 * 2
    assert floor(found, 4) == 8000 // 2 + 400 * 2
    assert floor(found, 8, keeps=0.5) == (8000 + 400 * 2) // 2
    assert floor(found, 8, keeps=0.0) == 0
    assert floor(facts_of(save(trees(), tmp_path / "t.onnx")), 8) == 10


def test_peaks_may_be_inside_each_other() -> None:
    with Peak() as outer:
        first = np.ones(10_000_000)
        del first
        with Peak() as inner:
            second = np.ones(4_000_000)
            del second
    assert outer.mb - outer.held_mb > 70
    assert 25 < inner.mb - inner.held_mb < 60


def test_memory_is_looked_at_where_the_kernel_keeps_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopwright.compression.peak._CLEAR", tmp_path / "absent" / "clear_refs")
    with Peak() as peak:
        held = np.ones(4_000_000)
    assert not peak.exact and len(held)
    assert 25 < peak.mb - peak.held_mb < 60
