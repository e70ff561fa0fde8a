"""Governance at scale: 20,000 versions and 1,000,000 audit rows in one ledger.

A promotion through our store beside the same call on MLflow's own store, in one process, on SQLite with the same
settings, taken in turns; how fast the audit log is walked; how long people wait for lists.
Run: .venv/bin/python benchmarks/governance.py [--rows 1000000] [--rounds 60]
"""

import argparse
import logging
import os
import pwd
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import Connection, Engine, insert

from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.demo.processes import free_port
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import to_us
from loopwright.kernel.digest import canonical_json, digest_json
from loopwright.ledger import store as ledger_store
from loopwright.ledger.audit import GENESIS, Stored, hashed_bytes
from loopwright.ledger.engine import Ledger, make_engine
from loopwright.ledger.schema import approvals, audit, evidence, projects, promotions, versions
from loopwright.project.spec import Spec
from loopwright.registry import store as registry_store
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_store import GovernedRegistry
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.policies import policy_of
from loopwright.registry.records import source_of

START = datetime(2026, 1, 1, tzinfo=UTC)
MODELS = {"one": 10_000} | {f"model-{number:03d}": 100 for number in range(100)}
DORA = Actor("dora", Role.DEVELOPER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument(
        "--keep", type=Path, help="build the home here and keep it, or use the one that is here"
    )
    options = parser.parse_args()
    # Stages are what we govern; MLflow says at each call that it would rather have none.
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder) / "home"
        began = time.perf_counter()
        ctx = home(root, options.rows)
        took = time.perf_counter() - began
        print(
            f"{sum(MODELS.values()):,} versions of {len(MODELS)} models, {options.rows:,} audit rows ({took:.0f} s)"
        )
        transitions(ctx, Path(folder), options.rounds)
        waits(ctx)
        walks(ctx, options.rows)
        ctx.ledger.dispose()


# What it costs to be governed.


class Theirs(SqlAlchemyStore):
    """MLflow's own store, unchanged but for the settings of its database, which are the ledger's."""

    @classmethod
    def _get_or_create_engine(cls, db_uri: str) -> Engine:
        return make_engine(db_uri)


def transitions(ctx: Context, folder: Path, rounds: int) -> None:
    """Versions whose promotion lacks nothing, moved to Production by MLflow's call, in turns."""
    plain = folder / "plain.db"
    theirs = plain_store(plain, rounds)
    ours = GovernedRegistry(ctx.ledger.url)
    took: dict[str, list[float]] = {"MLflow's own store": [], "loopwright": []}
    token = current_actor.set(DORA)
    for number in range(1, rounds + 1):
        for name, store in (("MLflow's own store", theirs), ("loopwright", ours)):
            began = time.perf_counter()
            moved = store.transition_model_version_stage("one", str(number), "Production", False)
            took[name].append(1000 * (time.perf_counter() - began))
            assert moved.current_stage == "Production"
    current_actor.reset(token)
    own, governed = (statistics.median(values) for values in took.values())
    print(f"\n{'stage to Production':34}{'median ms':>10}{'worst ms':>10}")
    for name, values in took.items():
        print(f"{name:34}{statistics.median(values):10.1f}{max(values):10.1f}")
    mark = "" if governed - own < 20 else "   OVER THE LIMIT"
    print(f"{'governance adds':34}{governed - own:10.1f}{'limit 20':>10}{mark}")


def plain_store(path: Path, count: int) -> Theirs:
    theirs = Theirs(f"sqlite:///{path}")
    theirs.create_registered_model("one")
    for _ in range(count):
        made: ModelVersion = theirs.create_model_version("one", source="mlflow-artifacts:/bundles/x")
        assert made.current_stage == "None"
    return theirs


# What people wait for.


def waits(ctx: Context) -> None:
    """Each question as a folder client asks it; the fastest of five, in milliseconds."""
    questions: dict[str, tuple[str, dict[str, Any]]] = {
        "models list": ("models.list", {}),
        "models show one (10,000 versions)": ("models.show", {"model": "one"}),
        "models show one 5000": ("models.show", {"model": "one", "version": 5000}),
        "models show model-050": ("models.show", {"model": "model-050"}),
        "status": ("system.status", {}),
        "audit show": ("audit.show", {}),
        "audit show --model model-050": ("audit.show", {"model": "model-050"}),
        "audit show --model nobody's": ("audit.show", {"model": "nobody's"}),
        "audit show --actor --since": ("audit.show", {"actor": "ada", "since": START + timedelta(days=3)}),
        "audit show --until": ("audit.show", {"until": START + timedelta(days=1)}),
        "audit show --action (few)": ("audit.show", {"action": "key.rotated"}),
    }
    print(f"\n{'':34}{'ms':>10}{'limit':>10}")
    for name, (operation, arguments) in questions.items():
        tell(name, lambda o=operation, a=arguments: find(o)(ctx, **a))
    dev, ada, bob = (ctx.acting_as(Actor(who, role)) for who, role in
                     (("dora", Role.DEVELOPER), ("ada", Role.APPROVER), ("bob", Role.APPROVER)))  # fmt: skip
    number = iter(range(9_000, 10_000))
    seen: list[int] = []

    def promote() -> None:
        seen.append(next(number))
        find("models.promote")(dev, model="one", version=seen[-1], to="staging")

    tell("promote", promote)
    tell("approve", lambda: find("models.approve")(seen_of(seen, ada, bob), model="one", version=seen.pop()))


def seen_of(seen: list[int], ada: Context, bob: Context) -> Context:
    return ada if len(seen) % 2 else bob


def tell(name: str, ask: Callable[[], object]) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        ask()
        took.append(1000 * (time.perf_counter() - began))
    mark = "" if min(took) < 300 else "   OVER THE LIMIT"
    print(f"{name:34}{min(took):10.1f}{300:10}{mark}", flush=True)


# How fast the log is walked.


def walks(ctx: Context, rows: int) -> None:
    print(f"\n{'audit verify':34}{'rows/s':>10}{'limit':>10}{'MB grown':>10}")
    walk("SQLite", ctx.ledger)
    with postgres() as url:
        if url is None:
            print("PostgreSQL is not installed: not measured")
            return
        ledger = Ledger.open(url)
        ledger.migrate()
        with ledger.write() as conn:
            fill_audit(conn, rows)
        walk("PostgreSQL", ledger)
        ledger.dispose()


def walk(name: str, ledger: Ledger) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ledger.read() as conn:
        began = time.perf_counter()
        report = ledger_store.verify(conn)
        took = time.perf_counter() - began
    assert report.ok, report.why
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    mark = "" if report.rows / took >= 100_000 else "   UNDER THE LIMIT"
    print(f"{name:34}{report.rows / took:10,.0f}{100_000:10,}{grown:10.0f}{mark}", flush=True)


# The home.


def home(root: Path, rows: int) -> Context:
    """A home with every version, its evidence and promotions, and a whole chain of `rows` rows."""
    made = (root / "keys").is_dir()
    ctx = open_context(root, LOCAL, create=True)
    if made:
        return ctx
    ensure_mlflow_tables(ctx.ledger)
    with ctx.ledger.write() as conn:
        fill_registry(conn)
        fill_audit(conn, rows)
    return ctx


def fill_registry(conn: Connection) -> None:
    spec = Spec.from_json({
        "model": "one", "task": "binary",
        "data": {"sources": {"s": {"uri": "s.csv", "contract": "s.yaml"}}, "label": {"name": "late"}},
        "policy": {"tier": "low", "approvals": {"staging": 1, "production": 0}},
    })  # fmt: skip
    conn.execute(
        insert(projects).values(
            model="one", path="/srv/one", spec=text(spec.to_json()), spec_digest="0",
            updated_at=0, waived=text(["approvals.production", "tier"]),
        )
    )  # fmt: skip
    policy = policy_of(conn, "model-000")
    kept: dict[Any, list[dict[str, Any]]] = {table: [] for table in (
        registry_store.ml_models, registry_store.ml_versions, versions, evidence, promotions, approvals,
    )}  # fmt: skip
    now = to_us(START)
    for model, count in MODELS.items():
        kept[registry_store.ml_models].append(
            {"workspace": "default", "name": model, "creation_time": 0, "last_updated_time": 0}
        )
        for number in range(1, count + 1):
            bundle = digest_json([model, number])
            stage = "Production" if number == count and model != "one" else "None"
            kept[versions].append({
                "model": model, "version": number, "bundle": bundle, "run_id": f"run-{model}-{number}",
                "snapshot": bundle, "semver": f"1.{number}.0", "stage": stage, "author": "dora", "created_at": now,
                "metrics": text({"roc_auc": 0.7, "brier": 0.2}), "annotations": "{}",
            })  # fmt: skip
            kept[registry_store.ml_versions].append({
                "workspace": "default", "name": model, "version": number, "creation_time": 0,
                "last_updated_time": 0, "user_id": "dora", "current_stage": stage, "source": source_of(bundle),
                "storage_location": source_of(bundle), "status": "READY",
            })  # fmt: skip
            kept[evidence].append({
                "digest": digest_json(["gates", bundle]), "kind": "gates", "model": model, "version": number,
                "bundle": bundle, "verdict": "PASS", "payload": text({"gates": ["metric"] * 10}), "at": now,
            })  # fmt: skip
            if number % 2 == 0:
                asked = f"pr_{model}_{number}"
                kept[promotions].append({
                    "id": asked, "model": model, "version": number, "stage": "Production", "bundle": bundle,
                    "requested_by": "dora", "requested_at": now, "reason": "better", "state": "effective",
                    "decided_at": now, "policy": text(policy.to_json()), "policy_digest": policy.digest,
                    "seq": number, "decided_seq": number,
                })  # fmt: skip
                kept[approvals] += [{
                    "id": f"ap_{model}_{number}_{who}", "promotion_id": asked, "reviewer": who,
                    "decision": "approve", "comment": "", "at": now, "bundle": bundle,
                } for who in ("ada", "bob")]  # fmt: skip
    for table, rows in kept.items():
        conn.execute(insert(table), rows)


def fill_audit(conn: Connection, count: int) -> None:
    """Insert a correctly hashed chain in bulk, as the driver can."""
    driver = conn.connection.dbapi_connection
    last: list[Stored] = []
    for index in audit.indexes:  # built afterwards, at once
        index.drop(conn)
    if conn.dialect.name == "sqlite":
        driver.executemany(f"INSERT INTO lw_audit VALUES ({', '.join('?' * 8)})", chain(count, last))
    else:
        with driver.cursor().copy("COPY lw_audit FROM STDIN") as copy:
            for row in chain(count, last):
                copy.write_row(row)
    for index in audit.indexes:
        index.create(conn)
    ledger_store.put_meta(conn, "audit.head", f"{last[0][0]} {last[0][7]}")


def chain(count: int, last: list[Stored]) -> Iterator[Stored]:
    """`count` rows of a busy year: four acts in turn, a row every half minute, payloads of some 300 bytes."""
    acts = ("promotion.requested", "approval.given", "version.registered", "promotion.effective")
    people, names = ("ada", "bob", "dora", "system"), list(MODELS)
    policy, before, at = "c" * 64, GENESIS, to_us(START)
    for seq in range(1, count + 1):
        at += 30_000_000
        payload = (
            f'{{"bundle":"{before}","evidence":["{policy}"],"policy":"{policy}",'
            f'"promotion":"pr_{seq:08x}","reason":"better – “by far”","stage":"Production"}}'
        )
        subject = f"{names[seq % len(names)]}/{seq % 97}"
        row: Stored = (seq, at, people[seq % 4], acts[seq % 4], subject, payload, before, "")
        before = sha256(hashed_bytes(row)).hexdigest()
        row = (*row[:7], before)
        yield row
    last.append(row)


def text(value: object) -> str:
    return canonical_json(value).decode()


@contextmanager
def postgres() -> Iterator[str | None]:
    """A PostgreSQL of our own in a temporary folder, with its usual durability; None where there is none."""
    on_path = shutil.which("pg_ctl")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    programs = next((folder for folder in folders if (folder / "initdb").exists()), None)
    if programs is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="loopwright-bench-"))
    as_user = (
        ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    )  # the server refuses to run as root
    if as_user:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    port = free_port()

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    run("initdb", "-A", "trust", "-U", "bench", "-E", "UTF8")
    where = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder}"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", where, "start")
    try:
        yield f"postgresql://bench@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
