"""Judges rows without landing them: a project's sources, one file, or a table of the lake as it stands."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from loopwright.data import store
from loopwright.data.check_report import CheckReport
from loopwright.data.check_spark import examination_on
from loopwright.data.checking import Examination, plain
from loopwright.data.contract import Contract
from loopwright.data.duck import MEMORY, memory_bytes
from loopwright.data.files import Files
from loopwright.data.lake import Lake
from loopwright.data.reference import snapshot_reference
from loopwright.data.source import public_uri, resolve, resolve_declared
from loopwright.data.workspace import workspace
from loopwright.kernel.errors import BadInput, NotFound
from loopwright.kernel.progress import Progress, Silent
from loopwright.pipeline.intake import in_reference_order
from loopwright.project.spec import Project


@dataclass(frozen=True, slots=True)
class Trial:
    """What a check of one table found. `broken`: rows that would be set aside, the first ones, with their reasons."""

    table: str
    source: str
    contract: str
    report: CheckReport
    broken: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        blocked = [rule.name for rule in self.report.blocked_by]
        return {
            "table": self.table, "source": self.source, "contract": self.contract, **self.report.to_json(),
            "blocked_by": blocked, "broken": [dict(row) for row in self.broken],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trials:
    """How to check. `rows`: so many broken rows are kept; `engine`: "duckdb" or a Spark's URL; `memory`: what DuckDB
    may take ("256MB")."""

    lake: Lake
    staging: Path
    now: datetime
    rows: int = 0
    memory: str = MEMORY
    engine: str = "duckdb"
    watch: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        memory_bytes(self.memory)  # says what is wrong with it

    def project(self, project: Project, tables: Sequence[str] | None = None) -> Iterator[Trial]:
        """Check the project's sources (or the named ones) in the order of their references, which are read too."""
        sources = project.spec.data.sources
        contracts = {name: Contract.load(project.path(source.contract)) for name, source in sources.items()}
        wanted = _with_references(tables or list(sources), contracts)
        order = [name for name in in_reference_order(contracts) if name in wanted]
        keys = {name: _keys(name, [contracts[other] for other in order]) for name in order}
        refs: dict[str, Files] = {}
        with workspace(self.staging) as folder:
            for name in order:
                contract = contracts[name]
                self.watch.step(f"Check {name}")
                staged = resolve_declared(sources[name], project.dir, whole=True).stage(
                    folder / name, contract.nulls
                )
                reference = snapshot_reference(self.lake, project.spec.model, name)
                with examination_on(
                    self.engine,
                    staged, contract, refs=refs, reference=reference, now=self.now, memory_limit=self.memory,
                    spill=folder,
                ) as found:  # fmt: skip
                    if keys[name]:
                        refs[name] = _kept(found, keys[name], folder / name / "keys.parquet")
                    if tables is None or name in tables:
                        yield self._trial(name, public_uri(sources[name].uri), contract, found)
                    self.watch.done(
                        f"{found.report.input_rows:,} rows, {found.report.bad_rows:,} of them bad"
                    )

    def uri(self, uri: str, contract: Contract, base: Path, *, model: str | None = None) -> Trial:
        """Check what lies at `uri`. `model`: whose silver tables relationships point to, and whose snapshots drift."""
        refs = self._refs(model, contract) if model else {}
        with workspace(self.staging) as folder:
            self.watch.step(f"Check {public_uri(uri)}")
            staged = resolve(uri, base).stage(folder / "rows", contract.nulls)
            with examination_on(
                    self.engine,
                staged, contract, refs=refs, now=self.now, memory_limit=self.memory, spill=folder,
                reference=snapshot_reference(self.lake, model, contract.name) if model else None,
            ) as found:  # fmt: skip
                self.watch.done(f"{found.report.input_rows:,} rows")
                return self._trial(contract.name, public_uri(uri), contract, found)

    def table(self, model: str, table: str, contract: Contract | None = None) -> Trial:
        """Check a silver table as it stands, by default against the contract its rows were landed by."""
        version = self.lake.version("silver", model, table)
        if version is None:
            raise NotFound(
                "there is no such table",
                where=model,
                got=table,
                next=f"List them: loopwright data tables {model}",
            )
        contract = contract or self._in_force(model, table)
        files = self.lake.files("silver", model, table)
        held = pa.schema([column for column in files.schema if not column.name.startswith("_")])
        with workspace(self.staging) as folder:
            self.watch.step(f"Check {model}/{table}")
            with examination_on(
                    self.engine,
                replace(files, schema=held, numbered=True), contract, refs=self._refs(model, contract), now=self.now,
                reference=snapshot_reference(self.lake, model, table), memory_limit=self.memory, spill=folder,
            ) as found:  # fmt: skip
                self.watch.done(f"{found.report.input_rows:,} rows")
                return self._trial(table, f"{model}/{table}, version {version}", contract, found)

    def _in_force(self, model: str, table: str) -> Contract:
        with self.lake.ledger.read() as conn:
            found = store.contract_in_force(conn, f"{model}/{table}")
        if found is None:
            raise BadInput(
                "no contract is known for this table", where=f"{model}/{table}", wanted="one it was landed by",
                next="Name one: --contract FILE",
            )  # fmt: skip
        return Contract.from_json(found.document, f"{model}/{table}, contract {found.number}", table)

    def _refs(self, model: str, contract: Contract) -> dict[str, Files]:
        return {
            name: self.lake.files("silver", model, name)
            for name in contract.references()
            if self.lake.exists("silver", model, name)
        }

    def _trial(self, table: str, source: str, contract: Contract, found: Examination) -> Trial:
        broken: list[dict[str, Any]] = []
        if self.rows and found.report.bad_rows:
            for batch in found.bad():
                for row in batch.slice(0, self.rows - len(broken)).to_pylist():
                    cells = {name: plain(value) for name, value in row.items() if not name.startswith("_")}
                    broken.append({"row": row["_row"], "reasons": row["_reasons"], "cells": cells})
                if len(broken) >= self.rows:
                    break
        return Trial(table, source, contract.source, found.report, broken)


def _with_references(names: Sequence[str], contracts: Mapping[str, Contract]) -> set[str]:
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted and name in contracts:
            wanted.add(name)
            waiting += contracts[name].references()
    return wanted


def _keys(table: str, contracts: Sequence[Contract]) -> list[str]:
    """Columns of the table that relationships of others point to."""
    return sorted({
        column
        for contract in contracts
        for rule in contract.rules
        if rule.kind == "relationship" and rule.arguments["table"] == table and contract.name != table
        for column in rule.arguments["columns"]
    })  # fmt: skip


def _kept(found: Examination, columns: Sequence[str], path: Path) -> Files:
    """The named columns of the good rows, as a file."""
    with found.good() as rows:
        schema = pa.schema([rows.schema.field(name) for name in columns])
        with pa_parquet.ParquetWriter(path, schema) as writer:
            for batch in rows:
                writer.write_batch(batch.select(list(columns)))
    return Files((str(path),), schema)
