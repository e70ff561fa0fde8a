import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwright.compression.attempts import Untracked, UntrackedRun
from loopwright.compression.candidate import Status
from loopwright.compression.constraints import Constraints
from loopwright.compression.judging import predict
from loopwright.compression.ladder import choose, climb
from loopwright.compression.plan import Family, Rung, plan
from loopwright.compression.recipe import Recipe
from loopwright.compression.report import LadderReport
from loopwright.compression.subject import Subject
from loopwright.kernel.errors import BadInput
from loopwright.stats.bootstrap import paired_bootstrap
from loopwright.stats.metrics import metric
from tests.unit.compression import small_graph
from tests.unit.compression.candidates import measured
from tests.unit.compression.small_graph import RUNGS
from tests.unit.compression.test_plan import KINDS, traits

SMALL = Constraints(120_000, None, 0.05)
"""Met by INT8 and smaller, not by FP16."""


class Counting(Untracked):
    """The names of the attempts that were really made."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, name: str, params: Mapping[str, Any]) -> UntrackedRun:
        self.started.append(name)
        return super().start(name, params)


class Watched:
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.ends: list[str] = []

    def step(self, name: str) -> None:
        self.steps.append(name)

    def update(self, fraction: float, note: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, summary: str) -> None:
        self.ends.append(summary)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    small_graph.write(path)
    return path


@pytest.fixture(scope="module")
def subject(graph: Path) -> Subject:
    return small_graph.subject(graph)


@pytest.fixture(scope="module")
def explored(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[LadderReport, Path]:
    folder = tmp_path_factory.mktemp("explored")
    return climb(subject, SMALL, folder, explore=True), folder


def test_it_stops_at_the_first_that_keeps_to_everything(subject: Subject, tmp_path: Path) -> None:
    watched = Watched()
    report = climb(subject, SMALL, tmp_path, rungs=RUNGS, watch=watched)

    assert report.chosen == "int8" and report.satisfied
    assert [one.name for one in report.candidates] == ["fp16", "int8"]
    assert report.choice is not None and report.choice.size <= 120_000
    assert report.candidates[0].misses(SMALL).keys() == {"size"}
    assert report.ended == "int8 keeps to everything"
    assert watched.steps == ["1/3 fp16", "2/3 int8"]
    assert "times smaller" in watched.ends[1]


def test_test_rows_are_asked_about_the_chosen_one_only(subject: Subject, tmp_path: Path) -> None:
    first = climb(subject, SMALL, tmp_path, rungs=RUNGS)
    assert [one.test is not None for one in first.candidates] == [False, True]
    # Another climb in the same folder, with another choice, does not show what the first had looked at.
    second = climb(subject, replace(SMALL, size=80_000), tmp_path, rungs=RUNGS)
    assert {one.name: one.test is not None for one in second.candidates} == {
        "fp16": False, "int8": False, "int4": True,
    }  # fmt: skip


def test_exploring_tries_and_tests_all_and_draws_them(explored: tuple[LadderReport, Path]) -> None:
    report, folder = explored
    tried = [one for one in report.candidates if one.status is not Status.SKIPPED]

    assert {"int8-static", "int8-mixed", "int8 weights", "int4 weights"} <= {one.name for one in tried}
    assert all(one.measured and one.test is not None for one in tried)
    assert report.explored and report.ended == "all rungs tried"
    assert report.choice is not None and report.choice.misses(SMALL) == {}
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert "int4 weights" in (folder / "tradeoff.html").read_text()
    assert LadderReport.from_json(json.loads((folder / "report.json").read_bytes())) == report


def test_no_file_is_smaller_than_its_floor(explored: tuple[LadderReport, Path]) -> None:
    sizes = [(one.name, one.floor, one.size) for one in explored[0].measured]
    assert len(sizes) > 5
    assert [one for one in sizes if not 0 < one[1] <= one[2]] == []


def test_what_cannot_be_small_enough_is_not_tried(explored: tuple[LadderReport, Path]) -> None:
    fp16 = explored[0].named("fp16")
    assert fp16.status is Status.SKIPPED and fp16.size == 0 and fp16.floor > 120_000
    assert fp16.why == "85k parameters × 16 bits / 8 = 170 kB at least, above the target of 120 kB"
    assert "there is only a graph" in explored[0].named("qat int8").why


def test_test_rows_choose_nothing() -> None:
    good, better = (
        measured("good", size=1_000_000, loss=0.001),
        measured("better", size=2_000_000, loss=0.001),
    )
    assert good.validation is not None and better.validation is not None
    worst, best = replace(good.validation, loss=0.9), replace(better.validation, loss=-0.5)
    for tested in ([good, better], [replace(good, test=worst), replace(better, test=best)]):
        assert choose(tested, Constraints(3_000_000)) == "good"


def test_the_choice_is_the_first_unless_another_is_nowhere_worse() -> None:
    wanted = Constraints(3_000_000, 10.0, 0.02)
    mild = measured("mild", size=2_000_000, p50=2.0, loss=0.001)
    other = measured("other", size=1_000_000, p50=3.0, loss=0.010)
    alike = measured("alike", size=1_990_000, p50=1.99, loss=0.001)
    better = measured("better", size=1_800_000, p50=1.9, loss=0.001)
    lucky = measured("lucky", size=1_500_000, p50=1.0, loss=-0.001, half=0.010)
    poor = measured("poor", size=100_000, p50=0.1, loss=0.500)

    assert choose([mild, other, poor], wanted) == "mild"
    assert choose([mild, alike, lucky], wanted) == "mild"
    assert choose([mild, other, alike, better, lucky, poor], wanted) == "better"
    assert choose([poor], wanted) == ""


def test_the_parent_is_the_choice_only_where_it_has_something_to_meet() -> None:
    parent = measured("original", size=4_000_000, p50=8.0, half=0.0)
    other, sure = measured("int8", size=1_000_000), measured("surely", size=1_000_000, half=0.0)
    assert choose([parent, other], Constraints(None, 20.0)) == "original"
    assert choose([parent, other, sure], Constraints(None, 20.0)) == "surely"
    assert choose([parent, other], Constraints(None, 10.0)) == "int8"
    assert choose([parent], Constraints(None, 20.0)) == "original"
    assert choose([parent], Constraints()) == ""


def test_a_killed_climb_goes_on_where_it_was(graph: Path, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.unit.compression.small_graph", graph, tmp_path, "2/3"], check=False
    )
    assert killed.returncode == -9
    kept = list(tmp_path.glob("candidates/*/candidate.json"))
    assert len(kept) == 1 and not (tmp_path / "report.json").exists()
    written = kept[0].stat().st_mtime_ns

    tracking = Counting()
    report = climb(small_graph.subject(graph), Constraints(50_000), tmp_path, rungs=RUNGS, tracking=tracking)

    assert tracking.started == ["int8", "int4"]
    assert kept[0].stat().st_mtime_ns == written
    assert [one.measured for one in report.candidates] == [True, True, True]
    again = Counting()
    assert climb(
        small_graph.subject(graph), Constraints(50_000), tmp_path, rungs=RUNGS, tracking=again
    ).candidates == report.candidates  # fmt: skip
    assert again.started == []


def test_what_the_budget_leaves_no_time_for_is_marked_and_tried_the_next_time(
    subject: Subject, tmp_path: Path
) -> None:
    none = climb(subject, SMALL, tmp_path, rungs=RUNGS, minutes=1e-9)
    assert {one.status for one in none.candidates} == {Status.SKIPPED}
    assert {one.why for one in none.candidates} == {"the budget ended before its turn"}
    assert (
        none.ended == "the budget of minutes is used up" and none.said() == "no candidate could be measured"
    )

    first = climb(subject, SMALL, tmp_path, rungs=RUNGS, minutes=10)
    assert first.chosen == "int8"
    # What is finished costs nothing, and is not lost to a small budget.
    assert climb(subject, SMALL, tmp_path, rungs=RUNGS, minutes=1e-9).candidates == first.candidates
    for wrong in (0, -1.0, float("nan"), 1e9):
        with pytest.raises(BadInput, match="number of minutes"):
            climb(subject, SMALL, tmp_path, rungs=RUNGS, minutes=wrong)


def test_where_nothing_is_good_enough_the_closest_and_what_it_lacks_are_told(
    subject: Subject, tmp_path: Path
) -> None:
    report = climb(subject, Constraints(30_000, None, 0.05), tmp_path, rungs=RUNGS)
    assert not report.satisfied and report.choice is None
    assert report.closest is not None and report.closest.name == "int4"
    by = report.closest.misses(report.constraints)["size"]
    assert by == pytest.approx(report.closest.size / 30_000)
    (need,) = report.needed()
    assert need.constraint == "size" and need.reached == report.closest.size and need.within_by == "int4"
    told = (tmp_path / "report.md").read_text()
    assert "none keeps to 30 kB, 5% loss; the closest, int4, misses size" in told
    assert "30 kB hold at most 30k parameters at 8 bits or 60k at 4, and the model has 85k" in told
    assert all(one.test is None for one in report.candidates)


def test_a_target_that_no_rung_can_reach_is_answered_with_a_measured_model(
    subject: Subject, tmp_path: Path
) -> None:
    report = climb(subject, Constraints(2_000, None, 0.2), tmp_path)
    assert [one.name for one in report.measured] == ["original", "int4 weights"]
    assert report.closest is not None and report.closest.name == "int4 weights"
    (need,) = report.needed()
    assert need.reached == report.closest.size
    assert f"would have to be {need.reached / 2_000:.3g} times smaller still" in need.advice
    assert "with its torch module, prune 70% + distil + int8-static comes to" in need.advice


def test_a_rung_that_fails_is_a_result_and_the_climb_goes_on(subject: Subject, tmp_path: Path) -> None:
    report = climb(
        subject, SMALL, tmp_path, rungs=[Rung("rounds", Family.TREES, ({"step": "tree-rounds"},)), *RUNGS]
    )
    assert report.candidates[0].status is Status.FAILED and report.candidates[0].why
    assert report.chosen == "int8"
    assert "| rounds | failed |" in report.to_markdown()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_rows_that_nothing_can_be_judged_by_are_told_before_any_work(
    subject: Subject, tmp_path: Path, part: str
) -> None:
    rows = getattr(subject.samples, part)
    beyond = replace(subject.samples, **{part: replace(rows, y=rows.y + 9)})
    wrong = replace(subject, samples=beyond, metric=metric("log_loss"))
    with pytest.raises(BadInput, match=f"digits: {part}.*class indices from 0 on"):
        climb(wrong, SMALL, tmp_path)
    assert not (tmp_path / "candidates").exists()


def test_senseless_rungs_are_refused_before_any_work(subject: Subject, tmp_path: Path) -> None:
    for rungs, said in (
        ([], "without rungs"),
        ([*RUNGS, RUNGS[0]], "two rungs of one name"),
        ([*RUNGS, Rung("int3", Family.PTQ, ({"step": "weights", "bits": 3},))], "no such bits"),
        ([*RUNGS, Rung("typo", Family.PTQ, ({"step": "int8-statc"},))], "unknown step"),
    ):
        with pytest.raises(BadInput, match=said):
            climb(subject, SMALL, tmp_path / "work", rungs=rungs)
    assert not (tmp_path / "work").exists()


def test_without_torch_graphs_are_still_made_smaller(graph: Path, tmp_path: Path) -> None:
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from pathlib import Path
from tests.unit.compression.small_graph import *
rungs = [Rung("distil", Family.DISTILLATION, ({{"step": "distil"}},)), *RUNGS]
report = climb(subject(Path({str(graph)!r})), Constraints(120_000, None, 0.05), Path({str(tmp_path)!r}), rungs=rungs)
print(report.chosen, "|", report.candidates[0].status, "|", report.candidates[0].why)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    chosen, status, why = done.stdout.strip().split(" | ")
    assert (chosen, status) == ("int8", "skipped")
    assert "needs torch" in why and "pip install" in why


def test_what_distillation_added_is_told_with_its_interval(digits_subject: Subject, tmp_path: Path) -> None:
    distil = {"step": "distil", "epochs": 1, "rows": 200}
    int8 = {"step": "int8-static"}
    control = Rung("plain", Family.DISTILLATION, ({**distil, "alpha": 0.0}, int8), 8.0)
    rung = Rung("taught", Family.DISTILLATION, (distil, int8), 8.0, adds="distillation", control=control)

    report = climb(digits_subject, Constraints(None, None, 0.5), tmp_path, rungs=[rung])

    assert [one.name for one in report.candidates] == ["taught", "plain"]
    assert report.named("taught").control == "plain"
    (gain,) = report.gains
    rows = digits_subject.samples.validation
    answers = [
        predict(small_graph_file, rows.feeds) for small_graph_file in (
            graph_of(tmp_path, report, "taught"), graph_of(tmp_path, report, "plain")
        )
    ]  # fmt: skip
    expected = paired_bootstrap("accuracy", rows.y, *answers, seed=7)
    assert (gain.gain, gain.low, gain.high) == (expected.difference, expected.low, expected.high)
    assert gain.rows == len(rows) and gain.what == "distillation"
    assert np.isclose(
        gain.gain,
        report.named("taught").validation.value - report.named("plain").validation.value,  # type: ignore[union-attr]
    )
    assert "distillation in taught" in report.to_markdown()


def graph_of(folder: Path, report: LadderReport, name: str) -> Any:
    from loopwright.compression.artefact import Artefact

    return Artefact.open(folder / report.named(name).file)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rung_is_a_recipe_with_settings_that_exist(kind: str) -> None:
    found = traits(kind, embedding=8_000_000, linear=0.9, blocks=6)
    rungs = plan(found, Constraints(6_000_000), explore=True)
    recipes = [Recipe.from_json(one.name, one.steps) for rung in rungs for one in (rung, rung.control) if one]

    assert len({one.name for one in rungs}) == len(rungs)
    assert len({Recipe.from_json(one.name, one.steps).key for one in rungs}) == len(rungs)
    both = [one for rung in rungs for one in (rung, rung.control) if one]
    for rung, recipe in zip(both, recipes, strict=True):
        assert recipe.trains == any(one["step"] in TRAIN for one in rung.steps)
        if kind != "trees":
            assert recipe.bits == rung.bits, rung.name


TRAIN = {"distil", "student", "finetune", "qat", "prune-structure", "low-rank", "trim-vocabulary"}


TRAIN = {"distil", "student", "finetune", "qat", "prune-structure", "low-rank", "trim-vocabulary"}
