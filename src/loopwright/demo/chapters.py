"""The chapters of the flights demo, in the order of a model's life. Each prints real figures and keeps them."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from loopwright.demo import ending
from loopwright.demo.processes import Process
from loopwright.demo.replay import Answered
from loopwright.demo.setting import MODEL, SERVER, month
from loopwright.demo.traffic import Traffic
from loopwright.features.module import load_features
from loopwright.kernel.clock import iso
from loopwright.kernel.errors import LoopwrightError
from loopwright.pipeline.frames import frame_of
from loopwright.pipeline.lifecycle import RunReport
from loopwright.project.spec import load_project

if TYPE_CHECKING:
    from loopwright.demo.flights import Stage

QUARTER_DAY = timedelta(hours=6)
WEEK = timedelta(days=7)
ROWS_PER_REQUEST = 200
PATIENCE = timedelta(days=45)  # event time a rollout may take before the story goes on without it
LAST_STEP = 0.25


def tell(stage: Stage, stack: ExitStack) -> bool:
    """Tell all chapters; returns whether every one held what it promises."""
    tour = Tour(stage)
    first = tour.train_first(as_of=month(4))
    tour.refuse_then_approve(first)
    tour.serve(stack, start=month(4))
    tour.replay_april(until=month(5))
    tour.deliver_second(as_of=month(5))
    tour.quiet_until(month(7))
    tour.survive_third()
    tour.maintain(until=month(13))
    return tour.prove(first)


class Tour:
    """The story's state: the stage and the traffic."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.tell = stage.narrator
        self.traffic: Traffic

    # 1–4

    def train_first(self, *, as_of: datetime) -> RunReport:
        """Chapters 1 to 4: data, features, training, gates."""
        self.tell.heading("1–4", "Ingest and check, features, train, gates: January to March")
        report = self.stage.train(as_of=as_of, reason="first model")
        self._defects(report)
        self._gates("train_v1", report)
        if report.version is None:
            raise LoopwrightError("the first model did not pass its gates", got=report.refused)
        return report

    def _defects(self, report: RunReport) -> None:
        rows = []
        for ingest in report.ingests:
            for rule in ingest.rules:
                if rule.failed:
                    rows.append((ingest.table, rule.name, rule.severity, rule.failed))
        self.tell.say(
            "what the contracts found (warn: kept and counted; quarantine: set aside with the reason):"
        )
        self.tell.table(["table", "rule", "severity", "rows"], rows)
        self.tell.found(
            "data",
            {
                "snapshot": report.snapshot,
                "tables": {
                    r.table: {
                        "input": r.input_rows,
                        "good": r.good_rows,
                        "bad": r.bad_rows,
                        "reasons": dict(r.reasons),
                    }
                    for r in report.ingests
                },
                "rules": [{"table": t, "rule": n, "severity": str(s), "failed": f} for t, n, s, f in rows],
            },
        )

    def _gates(self, step: str, report: RunReport) -> None:
        for result in report.gates.results:
            limit = f" (limit {result.limit})" if result.limit else ""
            self.tell.say(f"{result.verdict:<5} {result.name}{limit}: {result.detail}")
        self.tell.found(step, report.to_json())

    # 5

    def refuse_then_approve(self, report: RunReport) -> None:
        """Chapter 5: a plain MLflow client is refused, two people approve, it succeeds."""
        import mlflow
        from mlflow import MlflowClient
        from mlflow.exceptions import RestException

        self.tell.heading("5", "Register and promote: governance holds against a plain MLflow client")
        # MLflow deprecated stages and still serves them; users of plain clients call them every day.
        warnings.filterwarnings(
            "ignore", message=".*transition_model_version_stage.*", category=FutureWarning
        )
        warnings.filterwarnings("ignore", message=".*get_latest_versions.*", category=FutureWarning)
        uri = f"{self.stage.control_url}/mlflow"
        version = str(report.version)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.tell.say(
            f'plain MlflowClient: transition_model_version_stage("{MODEL}", "{version}", "Production")'
        )
        refusal = ""
        try:
            client.transition_model_version_stage(MODEL, version, "Production")
        except RestException as error:
            refusal = str(error)
            status = error.get_http_status_code()
            self.tell.say(f"  refused with {status}: {refusal}")
            self.tell.found("promotion", {"refused_status": status, "refusal": refusal})
        if not refusal:
            raise LoopwrightError("a plain MLflow client promoted a model nobody approved")
        answer = self.stage.approve(int(version), "first model for on-time notices")
        approvers = [a["reviewer"] for a in answer["approvals"]]
        self.tell.say(f"  ana asked; {' and '.join(approvers)} approved: {answer['state']}")
        moved = client.transition_model_version_stage(MODEL, version, "Production")
        self.tell.say(f"  the same call now answers: version {moved.version}, stage {moved.current_stage}")

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        loaded = mlflow.pyfunc.load_model(f"models:/{MODEL}/Production")
        self.tell.say(f'  mlflow.pyfunc.load_model("models:/{MODEL}/Production"): {type(loaded).__name__}')
        self.tell.found(
            "promotion",
            {"approvers": approvers, "stage": moved.current_stage, "loaded": True, "run_id": report.run_id},
        )

    # 6

    def serve(self, stack: ExitStack, start: datetime) -> None:
        """Start two workers and build the year as requests."""
        stage = self.stage
        self.tell.heading("6", "Serve with 2 workers, replay April: one request per flight")
        port = stage.port
        arguments = [
            "serve", "--control", stage.control_url, "--port", str(port.port), "--grpc-port", "0",
            "--workers", "2", "--home", str(stage.context.home.serving / "demo"),
        ]  # fmt: skip
        serving = Process(
            arguments,
            log=stage.context.home.logs / "serve.log",
            environment={"LOOPWRIGHT_TOKEN": stage.tokens[SERVER]},
        )
        stack.enter_context(serving)
        project = load_project(stage.project_dir)
        module = load_features(project)
        snapshot = self.tell.figures["data"]["snapshot"]
        self.tell.step("The rest of 2013 as requests, each with what was known at its moment")
        frame = frame_of(project, module, stage.lake, snapshot, cache=stage.context.home.frames)
        self.year = frame
        seconds = serving.wait_ready(f"http://{port.host}:{port.port}/v2/models/{MODEL}/ready")
        self.tell.say(f"serving on port {port.port}; only sealed bundles with a signed approval are loaded")
        self.tell.found("processes", {"serving_ready_seconds": seconds})
        self.traffic = Traffic(
            frame,
            model=MODEL,
            port=port,
            control=stage.clients["ana"],
            admin=stage.clients["admin"],
            start=start,
        )

    def replay_april(self, until: datetime) -> None:
        """Chapter 6: April, one request per flight."""
        answered = self.traffic.send_until(until)
        self.traffic.settle()
        self.tell.say(_answers(answered))
        self.tell.say(f"{self.traffic.labels_sent:,} labels arrived, each when its flight had landed")
        self.tell.found(
            "april", _figures(answered) | {"labels": self.traffic.labels_sent, "until": iso(until)}
        )

    # 7

    def deliver_second(self, as_of: datetime) -> None:
        """Chapter 7: version 2 goes through shadow and canary."""
        self.tell.heading(
            "7", "Deliver version 2, retrained on January to April: shadow, canary 1 → 5 → 25 → 100 %"
        )
        report = self.stage.train(as_of=as_of, reason="retrained on January to April")
        self._gates("train_v2", report)
        if report.version is None:
            raise LoopwrightError("version 2 did not pass its gates", got=report.refused)
        self.stage.approve(report.version, "one more month of data")
        rollout, answered = self.roll_out()
        self._rollout("rollout_v2", rollout, answered)

    def roll_out(self) -> tuple[dict[str, Any], Answered]:
        """Replay a quarter of a day at a time, one request per flight, until the rollout has ended."""
        total = Answered()
        self.traffic.settle()  # from the next request on, serving knows of the new version
        weight, deadline = 0.0, self.traffic.now + PATIENCE
        while self.traffic.now < deadline:
            # The long last step is looked at twice a day, the short ones four times.
            total += self.traffic.advance(QUARTER_DAY * (2 if weight >= LAST_STEP else 1))
            rollout = self.stage.clients["ana"].call("delivery.show", model=MODEL)
            self.tell.update(0.0, f"{self.traffic.now:%d %B %H:%M}  {rollout['status']}")
            weight = rollout["weight"] or 0.0
            if rollout["status"] not in ("running", "paused"):
                break
        return rollout, total

    def _rollout(self, step: str, rollout: dict[str, Any], answered: Answered) -> None:
        shown = self.stage.clients["ana"].call("models.show", model=MODEL, version=rollout["version"])
        recorded = {one["digest"]: one["payload"] for one in shown["evidence"]}
        for event in rollout["events"]:
            payload = event["payload"]
            said = payload.get("why") or event["kind"]
            self.tell.say(f"{(event['event_time'] or '')[:16]}  {said}")
            agreement = recorded.get(payload.get("evidence"), {}).get("evidence", {}).get("agreement")
            if agreement:
                self.tell.say(_agreed(agreement))
                self.tell.found(step, {"agreement": agreement})
        self.tell.say(_answers(answered))
        self.tell.found(step, {"rollout": rollout} | _figures(answered))

    def quiet_until(self, until: datetime) -> None:
        """Replay in multi-row requests, a week at a time."""
        while self.traffic.now < until:
            self.traffic.advance(min(WEEK, until - self.traffic.now), rows_per_request=ROWS_PER_REQUEST)
            self.tell.update(0.0, f"{self.traffic.now:%d %B}")

    # 8

    def survive_third(self) -> None:
        """Chapter 8: a faulty version is caught in its canary and rolled back by itself."""
        self.tell.heading("8", "Version 3 has a fault no gate could see: it must roll back by itself")
        # Trained on what version 2 was trained on, and held out before the first flight to an airport it has not seen.
        report = self.stage.train(
            as_of=month(4) + timedelta(days=21),
            reason="a faster transform",
            overrides=("features=features_strict.py", "data.holdout=5d", "search.rows=null"),
        )
        self._gates("train_v3", report)
        if report.version is None:
            raise LoopwrightError("version 3 did not pass its gates", got=report.refused)
        self.stage.approve(report.version, "a faster transform")
        rollout, answered = self.roll_out()
        self._rollout("rollout_v3", rollout, answered)
        stages = self._stages()
        self.tell.say(f"users got {answered.failed} errors; stages now: {stages}")
        self.tell.found("rollout_v3", {"stages": stages})

    def _stages(self) -> dict[str, str]:
        shown = self.stage.clients["ana"].call("models.show", model=MODEL)
        return {str(version["version"]): version["stage"] for version in shown["versions"]}

    # 9

    def maintain(self, until: datetime) -> None:
        """Chapter 9: drift and quality are watched, a retraining plan fires, its version goes live."""
        self.tell.heading("9", "Monitor the following months; retrain when the evidence says so")
        ana = self.stage.clients["ana"]
        project = load_project(self.stage.project_dir)
        applied = ana.call("projects.apply", model=MODEL, path=str(project.dir), spec=project.spec.to_json())
        self.tell.say(
            f"loopwright apply: the project's own loop.yaml, with retraining; changed: {', '.join(applied['changed'])}"
        )
        answered: set[str] = set()
        while self.traffic.now < until:
            self.quiet_until(min(self.traffic.now + WEEK, until))
            for plan in self._finished_plans(answered):
                answered.add(plan["id"])
                self._answer_plan(plan)
        self._alerts()

    def _finished_plans(self, answered: set[str]) -> list[dict[str, Any]]:
        ana = self.stage.clients["ana"]
        deadline = time.monotonic() + 180
        while True:
            plans = [p for p in ana.call("retrains.list", model=MODEL) if p["id"] not in answered]
            busy = [p for p in plans if p["state"] in ("proposed", "running")]
            if not busy:
                return [p for p in plans if p["state"] in ("succeeded", "failed", "waiting")]
            if time.monotonic() > deadline:
                raise LoopwrightError("a retraining run does not end", got=busy[0])
            self.tell.update(0.0, f"retraining: {busy[0]['why']}")
            time.sleep(0.3)  # the control plane's own controllers notice when the run has ended

    def _answer_plan(self, plan: dict[str, Any]) -> None:
        when = f"{self.traffic.now:%d %B}"
        self.tell.say(f"{when}: retraining ({plan['cause']}): {plan['why']} → {plan['state']}")
        if plan["state"] == "failed":
            rows = self.stage.clients["admin"].call(
                "audit.show", subject=MODEL, action="retrain.failed", limit=1
            )
            for row in rows:
                self.tell.say(f"  {row['payload'].get('why')}; the version in service stays")
        self.tell.found("retrains", {plan["id"]: plan})
        if plan["state"] != "succeeded" or plan["version"] is None:
            return
        version = int(plan["version"])
        self.tell.say(f"version {version} passed its gates and waits for approval; bo and chen approve")
        self.stage.approve(version, plan["why"])
        rollout, answered = self.roll_out()
        self.tell.say(
            f"version {version}: {rollout['status']} at {self.traffic.now:%d %B}; {_answers(answered)}"
        )
        self.tell.found(f"rollout_v{version}", {"rollout": rollout} | _figures(answered))

    def _alerts(self) -> None:
        alerts = self.stage.clients["ana"].call("monitoring.alerts", model=MODEL, state=None)
        tiers = Counter((alert["tier"], alert["kind"]) for alert in alerts)
        self.tell.say(
            "alerts by tier: "
            + (", ".join(f"{t} {k} × {n}" for (t, k), n in sorted(tiers.items())) or "none")
        )
        self.tell.table(
            ["at", "tier", "kind", "what", "state"],
            [(a["event_time"][:10], a["tier"], a["kind"], a["title"], a["state"]) for a in alerts[:12]],
        )
        self.tell.found("alerts", {"alerts": alerts})

    # 10

    def prove(self, first: RunReport) -> bool:
        """Chapter 10: reproduce the first run, verify the audit chain, draw the picture."""
        self.tell.heading("10", "Prove it")
        return ending.prove(self.stage, self.year, first, self.traffic)


def _answers(answered: Answered) -> str:
    versions = ", ".join(f"version {v}: {n:,}" for v, n in sorted(answered.by_version.items()))
    return (
        f"{answered.rows:,} flights answered in {answered.requests:,} requests, {answered.failed} failed, "
        f"{answered.fallbacks} by fallback; {versions}; {answered.per_second:,.0f} requests/s, "
        f"p99 {answered.latency_ms(0.99):.1f} ms"
    )


def _agreed(agreement: dict[str, Any]) -> str:
    return (
        f"{'':16}  shadow answered {agreement['pairs']:,} of the same requests: "
        f"{agreement['same_decision']:.1%} the same decision, correlation {agreement['correlation']:.3f}, "
        f"mean absolute difference {agreement['mean_absolute_difference']:.4f}"
    )


def _figures(answered: Answered) -> dict[str, Any]:
    return {
        "rows": answered.rows,
        "requests": answered.requests,
        "failed": answered.failed,
        "first_error": answered.first_error,
        "fallbacks": answered.fallbacks,
        "by_version": dict(answered.by_version),
        "by_arm": dict(answered.by_arm),
        "requests_per_second": answered.per_second,
        "p99_ms": answered.latency_ms(0.99),
    }
