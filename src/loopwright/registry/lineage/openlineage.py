"""Tells what happened in OpenLineage's words: one or two run events per row of the audit log. Pure.

The same ledger gives the same events with the same ids, whenever they are made, so nothing depends on what was sent
before. Facets follow the versions of the specification named in their `_schemaURL`; ours are plain run, job or dataset
facets. https://openlineage.io/docs/spec/object-model
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, uuid5

from loopwright import __version__
from loopwright.data.source import public_uri
from loopwright.kernel.clock import iso
from loopwright.registry.lineage.records import Pinned, Run

PRODUCER = f"https://pypi.org/project/loopwright/{__version__}"
NAMESPACE = "loopwright"
_SPEC = "https://openlineage.io/spec"
_CORE = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs"
_FACETS = {
    "schema": "1-2-0/SchemaDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "datasetType": "1-0-1/DatasetTypeDatasetFacet",
    "columnLineage": "1-2-0/ColumnLineageDatasetFacet",
    "dataQualityAssertions": "1-1-0/DataQualityAssertionsDatasetFacet",
    "dataQualityMetrics": "1-0-3/DataQualityMetricsInputDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "ownership": "1-0-1/OwnershipJobFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
}
_INDIRECT = {
    "joined on": "JOIN", "as of": "WINDOW", "known at": "FILTER", "filtered by": "FILTER", "named by": "GROUP_BY",
}  # fmt: skip

_LOGIN = re.compile(r"://[^/\s@]+@")

Event = dict[str, Any]


class Knows(Protocol):
    """Where events look things up; `lineage.store.Facts` is one."""

    def owner(self, model: str) -> str: ...

    def tables(self, snapshot: str) -> dict[str, Pinned]: ...

    def rules(self, table: str, batch: str) -> list[dict[str, Any]]: ...

    def run(self, run: str) -> tuple[Run, dict[str, float]] | None: ...


@dataclass(frozen=True, slots=True)
class Act:
    """A row of the audit log."""

    seq: int
    at: datetime
    actor: str
    action: str
    subject: str
    payload: Mapping[str, Any]


def events(act: Act, facts: Knows, *, namespace: str = NAMESPACE) -> list[Event]:
    """The run events that `act` stands for, in order; none for an act that lineage says nothing of."""
    room, _, what = act.action.partition(".")
    teller = _Teller(act, facts, namespace)
    match room:
        case "data":
            return teller.ingest(landed=what == "ingest")
        case "run":
            return teller.run(what)
        case "promotion" | "approval":
            return teller.promotion(what)
        case "rollout":
            return teller.rollout(what)
    return []


@dataclass(frozen=True, slots=True)
class _Teller:
    act: Act
    facts: Knows
    namespace: str

    def ingest(self, *, landed: bool) -> list[Event]:
        """A batch came in, or was refused: from its source into a table."""
        told = self.act.payload
        model, _, table = self.act.subject.partition("/")
        batch = str(told.get("source_digest", ""))
        source = self._dataset(*dataset_of(str(told.get("uri", "")), model), version=batch, kind="FILE")
        source["inputFacets"] = {
            "dataQualityMetrics": _facet(
                "dataQualityMetrics", rowCount=int(told.get("input_rows") or 0), columnMetrics={}
            )
        }
        assertions = self._assertions(batch, landed=landed)
        if assertions:
            source["inputFacets"]["dataQualityAssertions"] = _facet(
                "dataQualityAssertions", assertions=assertions
            )
        target = self._table(model, table)
        if landed:
            target = self._table(model, table, version=str(told.get("silver_version", "")))
            target["outputFacets"] = {
                "outputStatistics": _facet("outputStatistics", rowCount=int(told.get("good_rows") or 0))
            }
        facets = {"loopwright_batch": _own("RunFacet", batch=batch, actor=self.act.actor, **_only(
            told, "state", "input_rows", "good_rows", "bad_rows", "contract_digest",
        ))}  # fmt: skip
        if not landed:
            why = "; ".join(f"{name}: {why}" for name, why in dict(told.get("blocked_by") or {}).items())
            facets["errorMessage"] = _error(why or "the batch is blocked by its contract")
        job, run = f"{model}.{table}.ingest", self._run_id("ingest", self.act.seq)
        ended = "COMPLETE" if landed else "FAIL"
        return [
            self._event("START", job, run, model, inputs=[source], outputs=[target]),
            self._event(ended, job, run, model, facets=facets, inputs=[source], outputs=[target]),
        ]

    def _assertions(self, batch: str, *, landed: bool) -> list[dict[str, Any]]:
        if not landed:
            return [
                {"assertion": name, "success": False, "severity": "error"}
                for name in dict(self.act.payload.get("blocked_by") or {})
            ]
        return [
            {
                "assertion": rule["name"],
                "success": rule["state"] == "PASS",
                "actual": f"{rule['failed']} rows failed",
            }
            | ({"column": rule["column"]} if rule.get("column") else {})
            for rule in self.facts.rules(self.act.subject, batch)
        ]

    def run(self, what: str) -> list[Event]:
        """A training began or ended: from the tables its snapshot pins to a model."""
        run_id = self.act.subject.removeprefix("run ")
        found = self.facts.run(run_id)
        if found is None:
            return []
        run, metrics = found
        model = str(self.act.payload.get("model", ""))
        pinned = self.facts.tables(run.snapshot or "")
        inputs = [self._pinned(model, name, table) for name, table in sorted(pinned.items())]
        facets = {
            "processing_engine": _facet("processing_engine", version=__version__, name="loopwright"),
            "loopwright_run": _own(
                "RunFacet", run=run.id, snapshot=run.snapshot, actor=run.actor, reason=run.reason,
                experiment=run.experiment, codeDigest=run.code, commit=run.commit, configDigest=run.config,
            ),
        }  # fmt: skip
        job, id_ = f"{model}.train", self._run_id("run", run.id)
        if what == "start":
            return [self._event("START", job, id_, model, facets=facets, inputs=inputs)]
        if what == "failed":
            facets["errorMessage"] = _error(str(self.act.payload.get("why") or "the run failed"))
            return [self._event("FAIL", job, id_, model, facets=facets, inputs=inputs)]
        facets["loopwright_metrics"] = _own("RunFacet", metrics=metrics)
        if what == "refused":
            why = str(self.act.payload.get("why") or "the gates said no")
            facets["errorMessage"] = _error(f"no version was registered: {why}")
        version = self.act.payload.get("version")
        output = self._model(model, str(self.act.payload.get("bundle") or run.bundle or ""), version)
        if run.lineage:
            output["facets"] |= self._columns(model, run.lineage, pinned)
        ended = "FAIL" if what == "refused" else "COMPLETE"
        return [self._event(ended, job, id_, model, facets=facets, inputs=inputs, outputs=[output])]

    def promotion(self, what: str) -> list[Event]:
        """Somebody asked for a stage, spoke on it, or it was decided."""
        kinds = {
            "requested": "START",
            "given": "RUNNING",
            "effective": "COMPLETE",
            "rejected": "FAIL",
            "withdrawn": "ABORT",
        }
        model, version = self._subject()
        told = self.act.payload
        facets = {"loopwright_promotion": _own(
            "RunFacet", actor=self.act.actor, act=self.act.action, version=version, **_only(
                told, "promotion", "stage", "bundle", "reason", "comment", "approved_by", "evidence", "policy",
            ),
        )}  # fmt: skip
        if what == "rejected":
            facets["errorMessage"] = _error(f"rejected by {self.act.actor}")
        dataset = self._model(model, str(told.get("bundle") or ""), version)
        run = self._run_id("promotion", told.get("promotion"))
        return [
            self._event(
                kinds[what],
                f"{model}.promote",
                run,
                model,
                facets=facets,
                inputs=[dataset],
                outputs=[dataset],
            )
        ]

    def rollout(self, what: str) -> list[Event]:
        """Traffic moved towards a version, or away from it."""
        kinds = {"started": "START", "completed": "COMPLETE", "aborted": "ABORT", "rolled_back": "FAIL"}
        model, version = self._subject()
        told = self.act.payload
        back = bool(told.get("rollback"))
        facets = {"loopwright_rollout": _own(
            "RunFacet", actor=self.act.actor, act=self.act.action, version=version, **_only(
                told, "rollout", "from", "to", "why", "evidence", "rollback", "from_version", "baseline",
            ),
        )}  # fmt: skip
        job, run = f"{model}.rollout", self._run_id("rollout", told.get("rollout"))
        version_, traffic = self._model(model, "", version), self._table(model, "predictions", kind="STREAM")
        if what == "rolled_back" and not back:
            facets["errorMessage"] = _error(str(told.get("why") or "rolled back"))
        ended = "COMPLETE" if back else kinds.get(what, "RUNNING")
        told_now = self._event(ended, job, run, model, facets=facets, inputs=[version_], outputs=[traffic])
        # A rollback is one act, from the word to the traffic.
        began = [self._event("START", job, run, model, inputs=[version_], outputs=[traffic])] if back else []
        return [*began, told_now]

    # What events are made of

    def _event(
        self, kind: str, job: str, run: str, model: str, *, facets: Mapping[str, Any] | None = None,
        inputs: list[Event] | None = None, outputs: list[Event] | None = None,
    ) -> Event:  # fmt: skip
        of_job = {
            "jobType": _facet("jobType", processingType="BATCH", integration="LOOPWRIGHT", jobType="JOB")
        }
        if owner := self.facts.owner(model):
            of_job["ownership"] = _facet("ownership", owners=[{"name": owner, "type": "MAINTAINER"}])
        return {
            "eventType": kind,
            "eventTime": iso(self.act.at),
            "producer": PRODUCER,
            "schemaURL": f"{_CORE}/RunEvent",
            "run": {"runId": run, "facets": dict(facets or {})},
            "job": {"namespace": self.namespace, "name": job, "facets": of_job},
            "inputs": [_side(dataset, "inputFacets") for dataset in inputs or []],
            "outputs": [_side(dataset, "outputFacets") for dataset in outputs or []],
        }

    def _run_id(self, *parts: object) -> str:
        return str(uuid5(NAMESPACE_URL, "loopwright:" + "/".join([self.namespace, *map(str, parts)])))

    def _subject(self) -> tuple[str, int | None]:
        model, _, version = self.act.subject.rpartition("/")
        return model, int(version) if version.isdecimal() else None

    def _dataset(self, namespace: str, name: str, *, version: str = "", kind: str = "TABLE") -> Event:
        facets: dict[str, Any] = {"datasetType": _facet("datasetType", datasetType=kind)}
        if version:
            facets["version"] = _facet("version", datasetVersion=version)
        return {"namespace": namespace, "name": name, "facets": facets}

    def _table(self, model: str, table: str, *, version: str = "", kind: str = "TABLE") -> Event:
        return self._dataset(self.namespace, f"{model}.{table}", version=version, kind=kind)

    def _pinned(self, model: str, name: str, table: Pinned) -> Event:
        dataset = self._table(model, name, version=str(table.version))
        fields = [{"name": column, "type": kind} for column, kind in table.columns.items()]
        dataset["facets"]["schema"] = _facet("schema", fields=fields)
        dataset["facets"]["loopwright_content"] = _own("DatasetFacet", sha256=table.content)
        metrics = _facet("dataQualityMetrics", rowCount=table.rows, columnMetrics={})
        return dataset | {"inputFacets": {"dataQualityMetrics": metrics}}

    def _model(self, model: str, bundle: str, version: object) -> Event:
        dataset = self._table(model, "model", version=bundle, kind="MODEL")
        if version is not None:
            dataset["facets"]["loopwright_version"] = _own("DatasetFacet", model=model, version=version)
        return dataset

    def _columns(self, model: str, lineage: Mapping[str, Any], pinned: Mapping[str, Pinned]) -> Event:
        """The schema of the model's inputs, and which columns each reads; label and choice of rows bear on all."""
        inputs = list(lineage.get("inputs") or [])
        whole = [part for part in (lineage.get("label"), lineage.get("rows")) if part]
        fields = {
            part["name"]: {"inputFields": [
                field for read in part["reads"] for field in self._reads(model, read, pinned, str(part.get("sql", "")))
            ]}
            for part in inputs
        }  # fmt: skip
        dataset = [
            field
            for part in whole
            for read in part["reads"]
            for field in self._reads(model, read, pinned, "", bears=True)
        ]
        return {
            "schema": _facet("schema", fields=[{"name": part["name"]} for part in inputs]),
            "columnLineage": _facet("columnLineage", fields=fields, dataset=dataset),
        }

    def _reads(
        self,
        model: str,
        read: Mapping[str, Any],
        pinned: Mapping[str, Pinned],
        sql: str,
        *,
        bears: bool = False,
    ) -> list[Event]:
        table, column = read["table"], read["column"]
        # Whole rows are all columns there were.
        columns = list(pinned[table].columns) if column == "*" and table in pinned else [column]
        plain = "IDENTITY" if sql.strip('"') == column else "TRANSFORMATION"
        direct = "AGGREGATION" if sql.startswith("mean of") else plain
        ways = [
            {"type": "DIRECT", "subtype": direct}
            if how == "value" and not bears
            else {"type": "INDIRECT", "subtype": _INDIRECT.get(how, "CONDITIONAL")}
            for how in read["for"]
        ]
        return [
            {"namespace": self.namespace, "name": f"{model}.{table}", "field": name, "transformations": ways}
            for name in columns
        ]


def dataset_of(uri: str, model: str) -> tuple[str, str]:
    """Namespace and name of a source, as OpenLineage's naming rules have them; never a user, password or key."""
    uri = public_uri(uri)
    if "://" not in uri:
        return "file", uri if uri.startswith("/") else f"{model}/{uri}"
    parts = urlsplit(uri)
    name = unquote(parts.path).lstrip("/") or "/"
    if parts.scheme == "file":
        return "file", f"/{name}"
    return f"{parts.scheme}://{parts.netloc}", name + (f"?{parts.query}" if parts.query else "")


def _side(dataset: Event, facets: str) -> Event:
    """The dataset as it stands on one side of a job, with that side's facets."""
    return {name: dataset[name] for name in ("namespace", "name", "facets")} | {
        facets: dataset.get(facets, {})
    }


def _facet(facet: str, **content: Any) -> Event:
    stem, title = _FACETS[facet].split("/")
    return {
        "_producer": PRODUCER,
        "_schemaURL": f"{_SPEC}/facets/{stem}/{title}.json#/$defs/{title}",
        **content,
    }


def _own(base: str, **content: Any) -> Event:
    """A facet of our own: its schema is the specification's base, which lets anything stand in it."""
    told = {name: value for name, value in content.items() if value not in (None, "", [], {})}
    return {"_producer": PRODUCER, "_schemaURL": f"{_CORE}/{base}", **told}


def _error(message: str) -> Event:
    return _facet("errorMessage", message=_LOGIN.sub("://", message)[:2000], programmingLanguage="PYTHON")


def _only(told: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: told[name] for name in names if told.get(name) not in (None, "", [], {})}
