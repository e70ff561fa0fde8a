"""A home whose model `late` is served: real bundles, approved and rolled out, for tests of jobs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.testing import tiny_answer, tiny_bundle
from loopwright.control.access import LOCAL
from loopwright.control.context import Context, open_context
from loopwright.control.operation import find
from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.clock import Clock, utc_now
from loopwright.pipeline.store import save_project
from loopwright.project.spec import Spec
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import register_version
from tests.governing import ask_for_nothing, vouch

MODEL = "late"
AUTHOR = Actor("dora", Role.DEVELOPER)


def make_home(
    folder: Path,
    settings: Mapping[str, object] | None = None,
    *,
    spec: Mapping[str, object] | None = None,
    clock: Clock = utc_now,
    **bundle: object,
) -> Context:
    """A home in `folder` with version 1 of `late` serving everybody; settings: of home.json; spec: of loop.yaml."""
    if settings:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "home.json").write_text(json.dumps(settings))
    ctx = open_context(folder, LOCAL, clock=clock, create=True)
    ensure_mlflow_tables(ctx.ledger)
    serve_first(ctx, spec, **bundle)
    return ctx


def serve_first(ctx: Context, spec: Mapping[str, object] | None = None, **bundle: object) -> None:
    """Make `late` known to the home, and version 1 of it serve everybody."""
    with ctx.ledger.write() as conn:
        ask_for_nothing(conn, MODEL, at=ctx.now)
        said = {
            "model": MODEL, "team": "ops", "project": "delays", "owner": "o@x.example", "task": "binary",
            "data": {
                "sources": {"f": {"uri": "f.csv", "contract": "f.yaml"}}, "label": {"name": "late"},
            },
            "features": "features.py", "train": {"entry": "train.py:train"}, "policy": {"tier": "low"}, **(spec or {}),
        }  # fmt: skip
        save_project(conn, MODEL, "", Spec.from_json(said).to_json(), "", ctx.now)
    serve_version(ctx, **bundle)  # type: ignore[arg-type]


def serve_version(ctx: Context, *, bias: float = 0.0, promote: bool = True, **options: object) -> int:
    """Seal and register another version, and bring it to production unless told otherwise; returns its number."""
    built = ctx.home.root / "built" / f"{bias}-{len(list(ctx.home.bundles.glob('*')))}"
    built.parent.mkdir(exist_ok=True)
    tiny_bundle(built, ctx.key, model=MODEL, bias=bias, **options)  # type: ignore[arg-type]
    digest = BundleDepot(ctx.home.bundles).add(built)
    with ctx.ledger.write() as conn:
        vouch(conn, MODEL, digest, at=ctx.now)
        version = register_version(
            conn, model=MODEL, bundle=digest, run_id=None, snapshot=None, author=AUTHOR, metrics={}, now=ctx.now
        ).version  # fmt: skip
    if promote:
        find("models.promote")(ctx, model=MODEL, version=version)
    return version


def row(number: int) -> dict[str, object]:
    """The inputs of the `number`-th row: all of them differ in their answer."""
    return {
        "distance": float(100 + number % 3000),
        "hour": number % 24,
        "carrier": ("UA", "AA", "B6")[number % 3],
    }


def answer(number: int, bias: float = 0.0) -> float:
    """What the model says of it."""
    one = row(number)
    return tiny_answer(one["distance"], one["hour"], one["carrier"], bias=bias)  # type: ignore[arg-type]


def write_csv(path: Path, rows: int, *, extra: Sequence[str] = ()) -> Path:
    """A file of `rows` rows with a column nobody asks for; `extra`: lines at the end."""
    with path.open("w") as file:
        file.write("carrier,distance,hour,tail\n")
        for number in range(rows):
            one = row(number)
            file.write(f"{one['carrier']},{one['distance']},{one['hour']},N{number}\n")
        file.writelines(f"{line}\n" for line in extra)
    return path


def start_worker(
    home: Path, *options: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A real `loopwright worker`; its lines of JSON go to `log`."""
    words = [
        sys.executable,
        "-m",
        "loopwright",
        "--json",
        "worker",
        "--home",
        str(home),
        "--poll",
        "20ms",
        *options,
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOOPWRIGHT_")}
    with (log or home / "worker.log").open("ab") as stream:
        return subprocess.Popen(words, stdout=stream, stderr=stream, env={**clean, **(environment or {})})


def lines(log: Path) -> list[dict[str, object]]:
    """What a worker said so far."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
