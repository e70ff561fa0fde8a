from pathlib import Path

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from loopwright.compression.constraints import Constraints
from loopwright.compression.facts import Facts, floor
from loopwright.compression.plan import Family, Rung, Traits, plan
from loopwright.compression.subject import Rows, Samples, Subject

ANY = Constraints()
KINDS = ("transformer", "cnn", "trees", "other")


def traits(
    kind: str, *, parameters: int = 20_000_000, embedding: int = 0, linear: float = 0.0, recurrent: bool = False,
    trainable: bool = True, batch_free: bool = False, blocks: int = 0, quantizable: bool = True,
) -> Traits:  # fmt: skip
    facts = Facts(kind, parameters * 4, parameters, parameters - 20_000, embedding, ())
    return Traits(facts, linear, quantizable and kind != "trees", recurrent, trainable, batch_free, blocks)


def tried(traits: Traits, wanted: Constraints, *, explore: bool = False) -> list[Rung]:
    return [one for one in plan(traits, wanted, explore=explore) if not one.why]


def steps(rung: Rung) -> list[str]:
    return [one["step"] for one in rung.steps]


def skipped(traits: Traits, wanted: Constraints, *, explore: bool = False) -> dict[str, str]:
    return {one.name: one.why for one in plan(traits, wanted, explore=explore) if one.why}


def families(rungs: list[Rung]) -> list[Family]:
    return list(dict.fromkeys(one.family for one in rungs))


def test_a_cnn_begins_with_static_int8_and_a_transformer_with_dynamic() -> None:
    for kind, first in (("cnn", "int8-static"), ("other", "int8-static"), ("transformer", "int8-dynamic")):
        assert [steps(one) for one in tried(traits(kind), ANY)[:2]] == [[], [first]]
    assert not any("int8-dynamic" in steps(one) for one in plan(traits("cnn"), ANY, explore=True))


def test_what_was_pretrained_is_taught_gently() -> None:
    rates = {}
    for kind in ("transformer", "cnn"):
        rungs = tried(traits(kind, linear=0.6, blocks=6), ANY, explore=True)
        said = [one for rung in rungs for one in rung.steps if one["step"] == "distil"]
        rates[kind] = {one.get("rate") for one in said}
    assert rates == {"transformer": {2e-4}, "cnn": {None}}


def test_recurrent_layers_are_quantized_dynamically() -> None:
    assert steps(tried(traits("other", recurrent=True), ANY)[1]) == ["int8-dynamic"]


def test_what_costs_most_comes_last() -> None:
    order = families(
        tried(traits("transformer", embedding=8_000_000, linear=0.6, blocks=6), ANY, explore=True)
    )
    assert order == [
        Family.ORIGINAL, Family.PTQ, Family.VOCABULARY, Family.QAT, Family.LOW_RANK, Family.DISTILLATION,
        Family.PRUNING,
    ]  # fmt: skip
    assert families(tried(traits("cnn"), ANY)) == [
        Family.ORIGINAL, Family.PTQ, Family.QAT, Family.PRUNING
    ]  # fmt: skip


def test_trees_lose_what_nobody_reads_then_rounds_then_precision_then_both_and_nothing_else() -> None:
    rungs = tried(traits("trees", trainable=False), Constraints(loss=0.02))
    assert [steps(one) for one in rungs[:5]] == [
        [], ["tree-rounding"], ["tree-rounds"], ["tree-rounding"], ["tree-rounds", "tree-rounding"]
    ]  # fmt: skip
    assert rungs[1].steps[0]["leaves"] == 0
    assert rungs[2].steps[0]["within"] == 0.01
    assert set(families(rungs)) == {Family.ORIGINAL, Family.TREES}


def test_a_graph_alone_is_not_trained() -> None:
    said = skipped(traits("transformer", embedding=8_000_000, trainable=False), ANY, explore=True)
    assert all(why == "it changes a torch module, and there is only a graph" for why in said.values())
    assert families(tried(traits("transformer", trainable=False), ANY)) == [Family.ORIGINAL, Family.PTQ]
    assert "qat int8" in said and any(name.startswith("prune") for name in said)


def test_four_bits_are_tried_when_size_is_what_is_asked() -> None:
    assert "no size is asked" in skipped(traits("transformer"), Constraints(None, 5.0))["int4 weights"]
    assert "int4 weights" in [one.name for one in tried(traits("transformer"), Constraints(15_000_000))]
    assert "int4 weights" in [
        one.name for one in tried(traits("transformer"), Constraints(None, 5.0), explore=True)
    ]


def test_a_rung_that_cannot_be_small_enough_is_skipped_with_the_arithmetic() -> None:
    said = skipped(traits("transformer", parameters=22_600_000), Constraints(20_000_000))
    assert said["int8-dynamic"] == (
        "22.6M parameters × 8 bits / 8 = 22.6 MB at least, above the target of 20 MB"
    )
    assert "× 16 bits / 8 = 45.2 MB" in said["fp16"]
    assert "qat int8" in said and "qat int4" not in said
    assert "int4 weights" not in said
    assert skipped(traits("transformer"), Constraints(25_000_000)).keys() == {"fp16"}


def test_where_nothing_can_be_small_enough_the_smallest_without_training_is_tried() -> None:
    for found in (traits("transformer", blocks=4), traits("cnn"), traits("other", trainable=False)):
        assert [one.name for one in tried(found, Constraints(100_000))] == ["original", "int4 weights"]


def test_what_pruning_and_students_leave_counts() -> None:
    said = skipped(traits("transformer", parameters=100_000_000, blocks=6), Constraints(40_000_000))
    assert "of which at least 67% stay" in said["student of 4 layers + distil + int8-dynamic"]
    assert "= 50 MB at least" in said["student of 3 layers + distil + int8-dynamic"]
    assert "student of 2 layers + distil + int8-dynamic" not in said
    assert "prune 30% + distil + int8-dynamic" in said
    assert "prune 70% + distil + int8-dynamic" not in said


def test_a_wanted_size_is_pruned_to() -> None:
    fitting = next(
        one for one in tried(traits("cnn"), Constraints(2_000_000)) if "prune-structure" in steps(one)
    )
    assert fitting.steps[0]["parameters"] == 1_860_000
    # Tables are not pruned: what they alone take up leaves nothing to prune to, unless they are trimmed first.
    large = traits("transformer", embedding=15_000_000)
    assert not any("prune to" in one.name for one in plan(large, Constraints(14_000_000)))
    fitting = [one for one in plan(large, Constraints(4_000_000)) if "prune to" in one.name]
    assert [steps(one)[:2] for one in fitting] == [["trim-vocabulary", "prune-structure"]]
    assert fitting[0].steps[1]["parameters"] == 3_720_000 and not fitting[0].why


def test_vocabularies_are_trimmed_where_the_table_dominates() -> None:
    def trimmed(found: Traits) -> list[Rung]:
        return [one for one in tried(found, Constraints(12_000_000)) if "trim-vocabulary" in steps(one)]

    assert not trimmed(traits("transformer", embedding=2_000_000, blocks=6))
    found = trimmed(traits("transformer", embedding=12_000_000, blocks=6))
    assert steps(found[0]) == ["trim-vocabulary", "int8-dynamic"]
    # First without those that never occur, then without the rare ones too, which training afterwards mends.
    shares = [one.steps[0].get("share") for one in found]
    assert None in shares[:2] and set(shares[-5:]) == {0.95}
    assert any({"trim-vocabulary", "student", "distil"} <= set(steps(one)) for one in found)
    assert any({"trim-vocabulary", "prune-structure", "distil"} <= set(steps(one)) for one in found)


def test_low_rank_is_for_models_of_linear_layers() -> None:
    assert not any("low-rank" in steps(one) for one in plan(traits("cnn", linear=0.2), ANY))
    assert any("low-rank" in steps(one) for one in plan(traits("other", linear=0.9), ANY))


def test_answers_that_depend_on_the_batch_are_not_tried_for_what_is_served_in_batches() -> None:
    found = traits("transformer", batch_free=True, blocks=4)
    assert "micro-batches" in skipped(found, ANY)["int8-dynamic"]
    assert not any("int8-dynamic" in steps(one) for one in tried(found, ANY))
    assert any(steps(one) == ["student", "distil", "int8-smooth"] for one in tried(found, ANY))


def test_a_model_without_layers_to_quantize_is_said_to_have_none() -> None:
    said = skipped(traits("other", quantizable=False, trainable=False), ANY)
    assert said["int8-static"].startswith("no layer with weights to quantize")


def test_what_distils_or_rounds_has_a_control_of_equal_training() -> None:
    for kind in ("transformer", "cnn"):
        for rung in plan(
            traits(kind, blocks=4, linear=0.9, embedding=8_000_000), Constraints(10**7), explore=True
        ):
            assert (rung.control is not None) == bool({"distil", "qat"} & set(steps(rung)))
            if rung.control is None:
                continue
            assert rung.adds in ("distillation", "QAT")
            assert rung.control.floor == rung.floor
            if rung.adds == "distillation":
                assert rung.control.steps == tuple(
                    {**one, "alpha": 0.0} if one["step"] == "distil" else one for one in rung.steps
                )
            else:
                assert "qat" not in steps(rung.control)


def test_qat_is_encoded_as_it_was_trained_and_its_control_trains_as_long() -> None:
    def found(of: Traits, name: str) -> Rung:
        return next(one for one in plan(of, ANY, explore=True) if one.name == name)

    fixed, taken = found(traits("cnn"), "qat int8"), found(traits("transformer"), "qat int8")
    assert [one["step"] for one in fixed.steps] == ["qat"] and fixed.steps[0]["activations"] == "static"
    assert taken.steps[0]["activations"] == "dynamic" and taken.steps[1] == {"step": "int8-dynamic"}
    blocks = found(traits("cnn"), "qat int4")
    assert (blocks.steps[0]["bits"], blocks.steps[1]["step"], blocks.steps[1]["bits"]) == (4, "weights", 4)
    for rung, encode in ((fixed, "int8-static"), (taken, "int8-dynamic"), (blocks, "weights")):
        assert rung.control is not None
        trained, encoded = rung.control.steps
        assert trained["step"] == "finetune" and encoded["step"] == encode
        assert [trained[key] for key in ("epochs", "rate")] == [
            rung.steps[0][key] for key in ("epochs", "rate")
        ]


@given(
    st.sampled_from(KINDS), st.integers(10_000, 10**9), st.floats(0, 0.95), st.floats(0, 1), st.integers(0, 24),
    st.integers(1_000, 4 * 10**9), st.booleans(),
)  # fmt: skip
def test_nothing_is_skipped_for_size_that_the_arithmetic_allows(
    kind: str, parameters: int, share: float, linear: float, blocks: int, size: int, explore: bool
) -> None:
    found = traits(
        kind, parameters=parameters, embedding=int(parameters * share), linear=linear, blocks=blocks
    )
    rungs = plan(found, Constraints(size), explore=explore)
    assert rungs[0].family is Family.ORIGINAL and not rungs[0].why
    tried_all_the_same = [one for one in rungs[1:] if not one.why and one.floor > size]
    for one in rungs[1:]:
        assert one.floor == floor(found.facts, one.bits, one.keeps)
        assert 0 <= one.keeps <= 1
        assert bool(one.why) == (one.floor > size and one not in tried_all_the_same)
    if tried_all_the_same:
        assert all(one.floor > size for one in rungs[1:])
        (least,) = tried_all_the_same
        assert least.family is Family.PTQ
        assert least.floor == min(one.floor for one in rungs if one.family is Family.PTQ)
    assert len({one.name for one in rungs}) == len(rungs)


def test_traits_are_read_from_the_graph(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {"w": (8, 16), "b": (16,), "v": (16, 2)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(random.random(s, dtype=np.float32), name) for name, s in weights.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "m.onnx",
    )
    parts = [Rows({"x": random.random((30, 8), dtype=np.float32)}, np.zeros(30)) for _ in range(3)]
    found = Traits.of(Subject.of("small", tmp_path / "m.onnx", Samples(*parts), "accuracy"))

    assert (found.kind, found.trainable, found.quantizable, found.recurrent) == ("other", False, True, False)
    assert found.linear == 1.0
    assert found.facts.parameters == 8 * 16 + 16 + 16 * 2
