"""Lineage of a real home: two runs, a refused batch and run, a rollout; its OpenLineage events, and a server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from openlineage.client import event_v2
from openlineage.client.serde import Serde

from loopwright.control import openlineage
from loopwright.control.context import Context, open_context
from loopwright.control.controllers.rollout import RolloutController
from loopwright.control.identify import LOCAL
from loopwright.control.openlineage import Emitter, Settings, following
from loopwright.control.operation import find
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.errors import BadInput, Refused
from loopwright.ledger import store as ledger_store
from loopwright.pipeline.lifecycle import RunReport, run_project
from loopwright.pipeline.scaffold import init_project
from loopwright.project.spec import load_project
from loopwright.registry.policies import waive

ADA = Actor("ada", Role.DEVELOPER)
BOB = Actor("bob", Role.APPROVER)
ROWS = 400


def write_rows(path: Path, seed: int, start: int = 0) -> None:
    chance = np.random.default_rng(seed)
    x, z = chance.normal(size=ROWS), chance.normal(size=ROWS)
    bought = (chance.random(ROWS) < 1 / (1 + np.exp(-2 * x - z))).astype(int)
    pa_csv.write_csv(pa.table({"id": range(start, start + ROWS), "x": x, "z": z, "bought": bought}), path)


def run(ctx: Context, project: Path, *overrides: str) -> RunReport:
    return run_project(
        project=load_project(project, ["search=null", "gates.baseline=null", *overrides]), home=ctx.home,
        ledger=ctx.ledger, actor=ADA, clock=ctx.clock, key=ctx.key, tracking_uri=ctx.home.ledger_url,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    made = open_context(tmp_path_factory.mktemp("lineage") / "home", LOCAL, create=True)
    yield made
    made.ledger.dispose()


@pytest.fixture(scope="module")
def reports(ctx: Context) -> list[RunReport]:
    """Two versions, the first approved and rolled out; then a run that its gates refuse, and a refused batch."""
    folder = ctx.home.root.parent
    write_rows(folder / "shop.csv", 3)
    project = folder / "shop"
    init_project(project, name="shop", data=folder / "shop.csv", target="bought", key=["id"])
    first = run(ctx, project)
    write_rows(folder / "more.csv", 4, start=ROWS)
    second = run(ctx, project, f"data.sources.shop.uri={folder / 'more.csv'}")
    with ctx.ledger.write() as conn:  # what `loopwright apply` by an admin does: the scaffolded tier is low
        waive(conn, "shop", ("tier",), actor=LOCAL, now=ctx.now)
    find("models.promote")(ctx.acting_as(ADA), model="shop", version=1)
    find("models.approve")(ctx.acting_as(BOB), model="shop", version=1)
    RolloutController().tick(ctx)
    refused = run(ctx, project, "gates.metrics.roc_auc='>= 0.9999'")
    lines = (folder / "shop.csv").read_text().splitlines()
    (folder / "bad.csv").write_text(
        "\n".join([lines[0], *(f"x,{line}"[:5] + ",a,b,c" for line in lines[1:])])
    )
    with pytest.raises((Refused, BadInput)):
        run(ctx, project, f"data.sources.shop.uri={folder / 'bad.csv'}")
    assert (first.version, second.version, refused.version) == (1, 2, None)
    return [first, second, refused]


def classes(module: str) -> dict[str, type]:
    return {name: kind for name, kind in vars(import_module(module)).items() if isinstance(kind, type)}


FACETS = {
    name: kind
    for part in (
        "schema_dataset", "dataset_version_dataset", "dataset_type_dataset", "column_lineage_dataset",
        "data_quality_assertions_dataset", "data_quality_metrics_input_dataset", "output_statistics_output_dataset",
        "job_type_job", "ownership_job", "error_message_run", "processing_engine_run",
    )
    for name, kind in classes(f"openlineage.client.generated.{part}").items()
}  # fmt: skip
BASES = {"RunFacet", "JobFacet", "DatasetFacet"}


def check_facet(name: str, facet: dict[str, Any]) -> None:
    """Build the facet with the official client's class, which knows its fields and the URL of its schema."""
    url = facet["_schemaURL"]
    assert url.startswith("https://openlineage.io/spec/") and facet["_producer"].startswith("https://")
    title = url.rpartition("/")[2]
    if title in BASES:
        assert name.startswith("loopwright_"), "what is ours carries our name"
        return
    kind = FACETS[title]
    assert kind._get_schema() == url, name  # type: ignore[attr-defined]
    fields = {key: value for key, value in facet.items() if not key.startswith("_")}
    known = {field.name.lstrip("_") for field in kind.__attrs_attrs__}  # type: ignore[attr-defined]
    assert set(fields) <= known, name
    kind(**fields)  # wrong or missing fields raise


def check_dataset(dataset: dict[str, Any], kind: type, own: str) -> Any:
    for facets in (dataset["facets"], dataset.get(own, {})):
        for name, facet in facets.items():
            check_facet(name, facet)
    assert set(dataset) <= {"namespace", "name", "facets", own}
    return kind(**dataset)


def check(event: dict[str, Any]) -> None:
    """Rebuild an event with the official client's classes, and compare what they would send."""
    for name, facet in {**event["run"]["facets"], **event["job"]["facets"]}.items():
        check_facet(name, facet)
    built = event_v2.RunEvent(
        eventType=event_v2.RunState(event["eventType"]),
        eventTime=event["eventTime"],
        producer=event["producer"],
        run=event_v2.Run(**event["run"]),
        job=event_v2.Job(**event["job"]),
        inputs=[check_dataset(each, event_v2.InputDataset, "inputFacets") for each in event["inputs"]],
        outputs=[check_dataset(each, event_v2.OutputDataset, "outputFacets") for each in event["outputs"]],
    )
    assert json.loads(Serde.to_json(built)) == json.loads(Serde.to_json(event))


def told(ctx: Context) -> list[dict[str, Any]]:
    return find("lineage.events")(ctx)["events"]  # type: ignore[index,call-overload,return-value]


def test_every_event_is_what_the_official_client_would_send(ctx: Context, reports: list[RunReport]) -> None:
    events = told(ctx)
    for event in events:
        check(event)
    seen = {(event["job"]["name"], event["eventType"]) for event in events}
    assert {
        ("shop.shop.ingest", "START"), ("shop.shop.ingest", "COMPLETE"), ("shop.shop.ingest", "FAIL"),
        ("shop.train", "START"), ("shop.train", "COMPLETE"), ("shop.train", "FAIL"),
        ("shop.promote", "START"), ("shop.promote", "COMPLETE"), ("shop.rollout", "START"),
    } <= seen  # fmt: skip


def test_a_training_says_its_tables_its_model_and_the_columns_between(
    ctx: Context, reports: list[RunReport]
) -> None:
    done = next(e for e in told(ctx) if e["job"]["name"] == "shop.train" and e["eventType"] == "COMPLETE")
    (table,), (model,) = done["inputs"], done["outputs"]
    assert table["name"] == "shop.shop" and table["facets"]["version"]["datasetVersion"] == "0"
    assert {field["name"] for field in table["facets"]["schema"]["fields"]} == {"id", "x", "z", "bought"}
    assert model["facets"]["version"]["datasetVersion"] == reports[0].bundle
    assert model["facets"]["loopwright_version"]["version"] == 1
    columns = model["facets"]["columnLineage"]
    assert set(columns["fields"]) == {"x", "z"}
    (read,) = columns["fields"]["x"]["inputFields"]
    assert (read["name"], read["field"]) == ("shop.shop", "x")
    assert read["transformations"] == [{"type": "DIRECT", "subtype": "IDENTITY"}]
    assert {read["field"] for read in columns["dataset"]} == {"bought", "id"}
    assert all(way["type"] == "INDIRECT" for read in columns["dataset"] for way in read["transformations"])
    facet = done["run"]["facets"]["loopwright_run"]
    assert facet["run"] == reports[0].run_id and facet["snapshot"] == reports[0].snapshot
    refused = next(e for e in told(ctx) if e["job"]["name"] == "shop.train" and e["eventType"] == "FAIL")
    assert "no version was registered" in refused["run"]["facets"]["errorMessage"]["message"]


def test_events_made_anew_are_the_same_events(ctx: Context, reports: list[RunReport]) -> None:
    first = told(ctx)
    assert told(ctx) == first
    later = find("lineage.events")(ctx, since=first[-1]["eventTime"])["events"]  # type: ignore[index,call-overload]
    assert later and later == first[-len(later) :]  # type: ignore[arg-type]
    paged: list[Any] = []
    going: Any = 0
    while going is not None:
        page: Any = find("lineage.events")(ctx, after=going, limit=2)
        paged, going = paged + page["events"], page["next"]
    assert paged == first


def test_a_real_home_answers_both_ways(ctx: Context, reports: list[RunReport]) -> None:
    up: Any = find("lineage.version")(ctx, model="shop", version=2)
    kinds = [node["kind"] for node in up["nodes"]]
    assert kinds.count("source") == kinds.count("batch") == 1, (
        "the second run's file came in place of the first's"
    )
    assert {"column", "feature", "transform", "config", "code", "bundle", "evidence"} <= set(kinds)
    old: Any = find("models.lineage")(ctx, model="shop", version=2)
    assert old == up
    first: Any = find("lineage.impact")(ctx, source="shop.csv")
    assert [each["id"] for each in first["affected"]] == ["shop/1"] and first["live"] == ["shop/1"]
    column: Any = find("lineage.impact")(ctx, column="shop.x")
    assert {each["id"] for each in column["affected"]} == {"shop/1", "shop/2"}


def test_columns_told_anew_from_the_kept_code_agree(ctx: Context, reports: list[RunReport]) -> None:
    recorded: Any = find("lineage.columns")(ctx, run=reports[0].run_id)
    assert recorded["recorded"] and recorded["agrees"] is None
    anew: Any = find("lineage.columns")(ctx, run=reports[0].run_id[:8], recompute=True)
    assert anew["agrees"] is True and anew["inputs"] == recorded["inputs"]
    assert recorded["transform"]["gives"] == ["x", "z"]
    viewer = ctx.acting_as(Actor("vera", Role.VIEWER))
    assert find("lineage.columns")(viewer, run=reports[0].run_id)
    with pytest.raises(Refused, match="vera may not run the code"):
        find("lineage.columns")(viewer, run=reports[0].run_id, recompute=True)


class Catcher(BaseHTTPRequestHandler):
    """An OpenLineage server: it takes events, or answers what it is told to."""

    got: list[dict[str, Any]]
    tokens: set[str | None]
    status = 201

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        if kind.status < 300:
            kind.got.append({"path": self.path, **body})
        kind.tokens.add(self.headers.get("Authorization"))
        self.send_response(kind.status)
        self.end_headers()
        self.wfile.write(b"said")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def serve() -> Iterator[Callable[[int], type[Catcher]]]:
    """Start a server at a port; it stops with the test."""
    running: list[ThreadingHTTPServer] = []

    def start(port: int) -> type[Catcher]:
        kind = type("Caught", (Catcher,), {"got": [], "tokens": set(), "status": 201})
        running.append(ThreadingHTTPServer(("127.0.0.1", port), kind))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return kind

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fresh(ctx: Context, reports: list[RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Emitter:
    """The same ledger, and a home beside it that has told nothing yet."""
    for name in ("OPENLINEAGE_URL", "OPENLINEAGE_API_KEY", "OPENLINEAGE_NAMESPACE", "OPENLINEAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openlineage, "LONGEST_PAUSE", 0.0)
    home = type(ctx.home).at(tmp_path / "home")
    home.create()
    return Emitter(home, ctx.ledger)


def lines(emitter: Emitter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in emitter.file.read_text().splitlines()]


def test_events_are_written_once_and_in_order(ctx: Context, fresh: Emitter) -> None:
    assert fresh.catch_up() == len(told(ctx))
    assert lines(fresh) == told(ctx)
    assert fresh.catch_up() == 0
    assert Emitter(fresh.home, ctx.ledger).catch_up() == 0, "another process goes on where this one stopped"
    with fresh.file.open("ab") as stream:
        stream.write(b'{"half": ')  # killed while writing
    find("models.annotate")(ctx, model="shop", version=1, key="k", value="v")
    Emitter(fresh.home, ctx.ledger).catch_up()
    assert lines(fresh) == told(ctx)


def test_who_comes_late_with_an_older_end_takes_nothing_back(
    ctx: Context, fresh: Emitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process reads how far there is to tell, another tells that and more, and the first goes on."""
    other = Emitter(fresh.home, ctx.ledger)
    assert other.catch_up() == len(told(ctx))
    last, old = openlineage.store.last_act, iter([1])
    with monkeypatch.context() as patch:
        patch.setattr(openlineage.store, "last_act", lambda conn: next(old, last(conn)))
        assert fresh.catch_up() == 0
    assert Emitter(fresh.home, ctx.ledger).catch_up() == 0
    assert lines(fresh) == told(ctx)


def test_a_server_that_is_down_at_first_gets_every_event_once_it_is_back(
    ctx: Context, fresh: Emitter, serve: Callable[[int], type[Catcher]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import free_port

    port = free_port()
    monkeypatch.setenv("LINEAGE_KEY", "s3cret")
    named = {"url": f"http://127.0.0.1:{port}", "api_key_env": "LINEAGE_KEY"}
    fresh.home.config.write_text(json.dumps({"openlineage": named}))
    fresh.catch_up()
    fresh.post()
    assert not fresh.wait(20), "nobody listens yet"
    assert lines(fresh) == told(ctx), "what could not be sent is kept"
    caught = serve(port)
    caught.status = 503
    fresh.post()
    assert not fresh.wait(20) and caught.got == []
    caught.status = 201
    fresh.post()
    assert fresh.wait(20)
    assert [{k: v for k, v in event.items() if k != "path"} for event in caught.got] == told(ctx)
    assert {event["path"] for event in caught.got} == {"/api/v1/lineage"} and caught.tokens == {
        "Bearer s3cret"
    }
    fresh.post()
    assert fresh.wait(20) and len(caught.got) == len(told(ctx)), "nothing is sent twice"
    assert "s3cret" not in fresh.file.read_text()


def test_an_event_the_server_will_not_have_is_put_aside_and_the_rest_go_on(
    ctx: Context, fresh: Emitter, serve: Callable[[int], type[Catcher]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import free_port

    port = free_port()
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{port}")
    caught = serve(port)
    caught.status = 422
    fresh.catch_up()
    fresh.post()
    assert fresh.wait(20)
    aside = [json.loads(line) for line in (fresh.folder / "refused.jsonl").read_text().splitlines()]
    assert [each["event"] for each in aside] == told(ctx) and aside[0]["answer"] == "said"


def test_neither_a_dead_server_nor_a_wrong_setting_disturbs_what_is_followed(
    ctx: Context, fresh: Emitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
    with following(fresh.home, ctx.ledger, every=0.01, patience=10):
        done = True
    assert done and lines(fresh) == told(ctx)
    monkeypatch.setenv("OPENLINEAGE_URL", "nonsense")
    with pytest.raises(BadInput, match="not the URL of an OpenLineage server"):
        Settings.of(fresh.home)
    with following(fresh.home, ctx.ledger, every=0.01):
        pass


def test_no_key_of_a_source_is_told(ctx: Context, fresh: Emitter) -> None:
    with ctx.ledger.write() as conn:
        ledger_store.append(
            conn, at=ctx.now, actor="ada", action="data.refused", subject="shop/other",
            payload={"uri": "https://ada:pw1234@data.example.com/a/b.csv?day=1&sig=abcdef&token=zyx",
                     "source_digest": "d" * 64, "input_rows": 3, "blocked_by": {"r": "see https://u:pw1234@x.example"}},
        )  # fmt: skip
    events = [event for event in told(ctx) if event["job"]["name"] == "shop.other.ingest"]
    for event in events:
        check(event)
    text = json.dumps(events)
    assert not any(secret in text for secret in ("pw1234", "abcdef", "zyx", "ada:"))
    source = events[0]["inputs"][0]
    assert (source["namespace"], source["name"]) == ("https://data.example.com", "a/b.csv?day=1")
