"""Predictions are explained on request and in the background: each once, by the version that answered."""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import NATIVE
from loopwright.bundle.open import Bundle, open_bundle
from loopwright.cli.commands import loopwright
from loopwright.control.context import Context
from loopwright.control.controllers.explanations import ExplanationsController
from loopwright.control.operation import find
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, NotFound, Refused, Tampered
from loopwright.monitoring.explanations import ExplanationLog
from loopwright.monitoring.log import PredictionLog
from loopwright.project.spec import Spec
from loopwright.quality.explain import explainer_for, native_text
from tests.explained import DAY, RNG, ask, event, register, rows, sealed, ship


def bundle_of(ctx: Context, digest: str) -> Bundle:
    return open_bundle(BundleDepot(ctx.home.bundles).path(digest), ctx.keyring.public)


@pytest.fixture
def first(ctx: Context) -> str:
    digest = sealed(ctx, 0.1)
    register(ctx, digest)
    ask(ctx)
    return digest


class TestTheLog:
    def test_every_answer_is_explained_once_by_the_version_that_gave_it(
        self, ctx: Context, first: str
    ) -> None:
        second = sealed(ctx, 0.3)
        assert register(ctx, second) == 2
        values = RNG.normal(size=40)
        events = [
            event(f"r{i}", version=1 + i % 2, inputs=[float(x), "UA" if i % 3 else None])
            for i, x in enumerate(values)
        ]
        ship(ctx, "one", *events[:25])
        ship(ctx, "two", *events[25:])
        controller = ExplanationsController(seconds=60)
        (did,) = controller.tick(ctx)
        assert (did["files"], did["explained"]) == (2, 40)
        assert controller.tick(ctx) == controller.tick(ctx) == []
        found = {row["id"]: row for row in rows(ctx)}
        assert len(found) == len(rows(ctx)) == 40
        for version, digest in ((1, first), (2, second)):
            bundle = bundle_of(ctx, digest)
            text = native_text(BundleDepot(ctx.home.bundles).path(digest), bundle.manifest)
            mine = [one for one in events if one.version == version]
            features = bundle.features({
                "a": np.array([one.inputs[0] for one in mine]),
                "carrier": np.array([one.inputs[1] for one in mine], dtype=object),
            })  # fmt: skip
            wanted = explainer_for(bundle, text).explain(features)
            for place, one in enumerate(mine):
                row = found[one.id]
                assert row["contributions"] == pytest.approx(wanted.values[place])
                assert row["base"] + sum(row["contributions"]) == pytest.approx(row["raw"])

    def test_answers_that_no_model_gave_are_not_explained(self, ctx: Context, first: str) -> None:
        stand_ins = [event(f"s-{arm}", arm=arm, status="fallback") for arm in ("cache", "default")]
        ship(ctx, "one", event("a"), event("b", arm="variant-b"), *stand_ins)
        ExplanationsController(seconds=60).tick(ctx)
        assert sorted(row["id"] for row in rows(ctx)) == ["a", "b"]
        with pytest.raises(BadInput, match="no model answered"):
            find("explain.prediction").answer(ctx, model="late", id="s-cache")

    def test_without_inputs_that_are_not_logged_nothing_is_explained_and_the_reason_is_told(
        self, ctx: Context, first: str
    ) -> None:
        ask(ctx, redact=("carrier",))
        ship(ctx, "one", event("a", inputs=[0.5, None]))
        ExplanationsController(seconds=60).tick(ctx)
        assert rows(ctx) == []
        told = ExplanationLog(ctx.home.explanations, ctx.home.predictions).progress("late")
        assert told.skipped == {"version 1: inputs are not logged (serving.log.redact: carrier)": 1}

    def test_an_input_that_is_not_logged_is_one_that_there_is(self, ctx: Context, first: str) -> None:
        data = {"sources": {"f": {"uri": "f.csv", "contract": "f.yaml"}}, "label": {"name": "y"}}
        for name in ("carrier", "carier"):
            log = {"redact": [name]}
            spec = Spec.from_json({"model": "late", "task": "binary", "data": data, "serving": {"log": log}})
            asked = partial(find("projects.apply").answer, ctx, model="late", path="/x", spec=spec.to_json())
            if name == "carrier":
                asked()
                continue
            with pytest.raises(BadInput, match="did you mean `carrier`"):
                asked()

    def test_a_model_that_does_not_ask_is_left_alone(self, ctx: Context, first: str) -> None:
        ask(ctx, "none")
        ship(ctx, "one", event("a"))
        assert ExplanationsController(seconds=60).tick(ctx) == []
        assert rows(ctx) == []

    def test_a_round_takes_a_bounded_portion_and_the_next_goes_on(self, ctx: Context, first: str) -> None:
        ship(ctx, "one", *(event(f"r{i}") for i in range(100)))
        controller = ExplanationsController(rows=30, seconds=60)
        assert [len(controller.tick(ctx)) for _ in range(3)] == [0, 0, 0]
        assert rows(ctx) == []
        assert controller.tick(ctx)[0]["explained"] == 100

    def test_a_round_ends_when_its_time_is_up(self, ctx: Context, first: str) -> None:
        for name in ("one", "two", "three"):
            ship(ctx, name, event(name))
        clock = iter(range(100))
        controller = ExplanationsController(seconds=2, timer=lambda: next(clock))
        assert controller.tick(ctx)[0]["files"] == 1

    def test_killed_half_way_nothing_is_lost_or_twice(self, ctx: Context, first: str) -> None:
        ship(ctx, "one", *(event(f"r{i}") for i in range(50)))
        ship(ctx, "two", *(event(f"s{i}") for i in range(50)))
        ExplanationsController(rows=70, seconds=60).tick(ctx)  # one whole file, and a part that dies with it
        again = ExplanationsController(seconds=60)
        while again.tick(ctx):
            pass
        ids = [row["id"] for row in rows(ctx)]
        assert len(ids) == len(set(ids)) == 100

    def test_a_file_shipped_again_with_more_rows_is_explained_anew(self, ctx: Context, first: str) -> None:
        controller = ExplanationsController(seconds=60)
        ship(ctx, "one", event("a"))
        controller.tick(ctx)
        ship(ctx, "one", event("a"), event("b"))
        controller.tick(ctx)
        assert [row["id"] for row in rows(ctx)] == ["a", "b"]

    def test_a_day_that_is_merged_stays_explained_once_in_one_file(self, ctx: Context, first: str) -> None:
        controller, log = ExplanationsController(seconds=60), PredictionLog(ctx.home.predictions)
        for name in ("one", "two"):
            ship(ctx, name, event(name))
        controller.tick(ctx)
        ship(ctx, "late", event("late"))
        assert log.compact("late", DAY.date(), least=2) == 3
        controller.tick(ctx)
        assert sorted(row["id"] for row in rows(ctx)) == ["late", "one", "two"]
        assert [file.name for file in (ctx.home.explanations / "late").glob("day=*/*")] == ["day.parquet"]
        ship(ctx, "straggler", event("straggler"))
        controller.tick(ctx)
        log.compact("late", DAY.date(), least=2)
        controller.tick(ctx)
        assert sorted(row["id"] for row in rows(ctx)) == ["late", "one", "straggler", "two"]
        progress = ExplanationLog(ctx.home.explanations, ctx.home.predictions).progress("late")
        assert (progress.files, progress.waiting, progress.explained) == (1, 0, 4)

    def test_a_crash_before_the_merged_files_were_removed_is_tidied_up(
        self, ctx: Context, first: str
    ) -> None:
        controller = ExplanationsController(seconds=60)
        ship(ctx, "one", event("one"))
        controller.tick(ctx)
        (left,) = (ctx.home.explanations / "late").glob("day=*/one.parquet")
        kept = left.read_bytes()
        PredictionLog(ctx.home.predictions).compact("late", DAY.date(), least=1)
        controller.tick(ctx)
        left.write_bytes(kept)
        ExplanationsController(seconds=60).tick(ctx)
        assert not left.exists()
        assert [row["id"] for row in rows(ctx)] == ["one"]

    def test_what_cannot_be_explained_is_skipped_counted_and_said_once(
        self, ctx: Context, first: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ship(ctx, "one", event("a"), event("gone", version=9), event("failed", status="error", outputs=[]))
        ship(ctx, "two", event("gone too", version=9))
        with caplog.at_level(logging.WARNING, "loopwright.control"):
            ExplanationsController(seconds=60).tick(ctx)
        assert [row["id"] for row in rows(ctx)] == ["a"]
        assert [record.getMessage() for record in caplog.records if "version 9" in record.getMessage()] == [
            "late: predictions are not explained: version 9: registry: `late` has no version 9; wanted one of 1"
        ]
        status = find("explain.status")(ctx, model="late")
        assert isinstance(status, dict)
        assert (status["waiting"], status["explained"], status["skipped"]) == (0, 1, 2)
        assert status["methods"] == {"1": "TreeSHAP (LightGBM)"}
        assert status["newest"] == "2013-06-01T00:00:00Z"

    def test_a_new_file_in_a_settled_day_is_found(self, ctx: Context, first: str) -> None:
        controller = ExplanationsController(seconds=60)
        for name in ("one", "two", "three"):
            ship(ctx, name, event(name))
            for _ in range(3):
                controller.tick(ctx)
        assert len(rows(ctx)) == 3


class TestOnRequest:
    def explain(self, ctx: Context, id: str, **more: Any) -> dict[str, Any]:
        answer = find("explain.prediction")(ctx, model="late", id=id, **more)
        assert isinstance(answer, dict)
        return answer

    def test_a_logged_prediction_is_explained_with_the_version_that_answered(
        self, ctx: Context, first: str
    ) -> None:
        bundle = bundle_of(ctx, first)
        inputs = {"a": np.array([0.7]), "carrier": np.array(["UA"], dtype=object)}
        output = float(bundle.predict(inputs)[0, 0])
        ship(ctx, "one", event("other"), event("mine", inputs=[0.7, "UA"], outputs=[output]))
        answer = self.explain(ctx, "mine")
        assert (answer["version"], answer["bundle"], answer["as_logged"]) == (1, first, True)
        assert answer["prediction"] == pytest.approx(output)
        values = {one["input"]: one["value"] for one in answer["inputs"]}
        assert values == {"a": 0.7, "carrier": "UA"}
        assert {one["feature"]: one["input"] for one in answer["features"]} == {
            "a": "a", "a2": "a", "is_ua": "carrier",
        }  # fmt: skip
        total = sum(one["contribution"] for one in answer["inputs"])
        assert answer["base"] + total == pytest.approx(answer["raw"])

    def test_a_logged_answer_that_the_version_does_not_give_is_called_out(
        self, ctx: Context, first: str
    ) -> None:
        ship(ctx, "one", event("odd", outputs=[0.123]))
        assert not self.explain(ctx, "odd")["as_logged"]

    def test_the_answer_that_was_given_counts_never_a_shadows(self, ctx: Context, first: str) -> None:
        assert register(ctx, sealed(ctx, 0.3)) == 2
        ship(
            ctx, "one", event("r", version=2, arm="shadow"),
            event("r", version=2, arm="canary", status="error", error="KeyError", outputs=[], at=DAY),
            event("r", version=1, status="fallback", at=DAY + timedelta(seconds=1)),
        )  # fmt: skip
        assert self.explain(ctx, "r")["version"] == 1
        assert self.explain(ctx, "r", version=2)["arm"] == "shadow"
        with pytest.raises(NotFound, match="did not answer"):
            self.explain(ctx, "r", version=7)

    def test_an_unknown_id_says_what_the_log_covers(self, ctx: Context, first: str) -> None:
        with pytest.raises(NotFound, match="log of this model is empty"):
            self.explain(ctx, "r")
        ship(ctx, "one", event("r"), event("s", at=DAY + timedelta(days=2)))
        with pytest.raises(NotFound, match="2 answers from 2013-06-01T00:00:00Z to 2013-06-03T00:00:00Z"):
            self.explain(ctx, "t")

    def test_a_failure_has_nothing_to_explain(self, ctx: Context, first: str) -> None:
        ship(ctx, "one", event("r", status="error", error="KeyError: XYZ", outputs=[]))
        with pytest.raises(BadInput, match="KeyError: XYZ"):
            self.explain(ctx, "r")

    def test_a_changed_bundle_explains_nothing(self, ctx: Context, first: str) -> None:
        ship(ctx, "one", event("r"))
        file = BundleDepot(ctx.home.bundles).path(first) / NATIVE
        file.write_bytes(file.read_bytes().replace(b"num_leaves=4", b"num_leaves=3", 1))
        with pytest.raises(Tampered):
            self.explain(ctx, "r")

    def test_it_takes_a_developer_for_it_shows_what_people_sent(self, ctx: Context, first: str) -> None:
        viewer = ctx.acting_as(Actor("vera", Role.VIEWER))
        with pytest.raises(Refused):
            self.explain(viewer, "r")

    def test_a_row_of_inputs_is_explained_without_being_logged(self, ctx: Context, first: str) -> None:
        answer = find("explain.inputs")(ctx, model="late", version=1, inputs={"a": 0.2, "carrier": None})
        assert isinstance(answer, dict)
        assert {one["input"] for one in answer["inputs"]} == {"a", "carrier"}  # type: ignore[index, union-attr, call-overload]
        with pytest.raises(BadInput, match="did you mean `carrier`"):
            find("explain.inputs")(ctx, model="late", version=1, inputs={"a": 1, "carier": "UA"})
        with pytest.raises(BadInput, match="inputs are missing; got carrier"):
            find("explain.inputs")(ctx, model="late", version=1, inputs={"a": 1})
        with pytest.raises(BadInput, match="not a single value"):
            find("explain.inputs")(ctx, model="late", version=1, inputs={"a": [1], "carrier": "UA"})

    def test_a_version_without_a_native_model_is_explained_by_its_graph(
        self, ctx: Context, first: str
    ) -> None:
        assert register(ctx, sealed(ctx, 0.1, native=False)) == 2
        answer = find("explain.inputs")(ctx, model="late", version=2, inputs={"a": 0.2, "carrier": "UA"})
        assert isinstance(answer, dict)
        assert answer["method"] == "exact Shapley values (shap)"
        assert answer["raw"] == answer["prediction"]


class TestTheCommand:
    @pytest.fixture
    def run(self, ctx: Context, first: str) -> Callable[..., Any]:
        def call(*words: str) -> Any:
            return CliRunner().invoke(
                loopwright, [*words, "--home", str(ctx.home.root)], catch_exceptions=True
            )

        return call

    def test_it_explains_by_id_and_draws(self, ctx: Context, run: Callable[..., Any], tmp_path: Path) -> None:
        ship(ctx, "one", event("r"))
        done = run("explain", "late", "--id", "r", "--svg", str(tmp_path / "w.svg"))
        assert done.exit_code == 0, done.output
        assert "TreeSHAP" in done.output and "logged was [0.5]" in done.output
        assert (tmp_path / "w.svg").read_text().startswith("<svg")

    def test_it_explains_a_file(self, run: Callable[..., Any], tmp_path: Path) -> None:
        file = tmp_path / "row.json"
        file.write_text('[{"a": 0.5, "carrier": "UA"}]')
        assert '"direction"' in run("explain", "late", "1", "--input", str(file), "--json").output
        file.write_text("[1, 2]")
        assert isinstance(run("explain", "late", "1", "--input", str(file)).exception, BadInput)

    def test_it_wants_one_thing_to_explain(self, run: Callable[..., Any]) -> None:
        assert isinstance(run("explain", "late").exception, BadInput)
        assert isinstance(run("explain", "late", "--input", "x.json").exception, BadInput)

    def test_status_says_how_far_it_is(self, ctx: Context, run: Callable[..., Any]) -> None:
        ship(ctx, "one", event("r"))
        assert "waiting    1" in run("explain", "status", "late").output
