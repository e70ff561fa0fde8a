"""Real servers: keys that change under them, bundles that change on their disk, models that are pickled."""

import io
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from loopwright.bundle.manifest import Golden
from loopwright.bundle.pickles import scan_bytes
from loopwright.bundle.routes import Arm
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.testing import CREATED, TINY_SCHEMA, TOLERANT
from loopwright.bundle.trust import TrustRecord, sign_trust

from .conftest import Control, Server, eventually, request

Serve = Callable[..., Server]
STABLE = Arm("stable", 1, 1.0)


def answers(server: Server) -> int:
    with httpx.Client(base_url=server.http.base_url, timeout=30) as http:
        return http.post("/v2/models/late/infer", json=request()).status_code


def replace_workers(server: Server) -> None:
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)
    # Each of them has to have loaded it: a new connection comes to either.
    eventually(lambda: all(answers(server) == 200 for _ in range(12)), 60)


def test_a_server_follows_a_rotation_and_a_revocation_and_restarts_from_disk(
    control: Control, serve: Serve
) -> None:
    digest = control.bundle("one")
    control.route({1: digest}, STABLE)
    server = serve(workers=2, keys_every=0.2)
    first = control.key.public
    control.rotate()
    control.route({1: digest}, STABLE)
    assert server.admin("refresh").json()["serial"] == 2
    assert server.predict().status_code == 200
    replace_workers(server)

    control.keyring.revoke(first.key_id, datetime.now(UTC), "stolen")
    eventually(lambda: "loopwright_refused_bundles 1" in server.http.get("/metrics").text)
    assert answers(server) == 200, "bytes that were verified go on answering from memory"
    control.depot.reseal(digest, control.key)
    eventually(lambda: "loopwright_refused_bundles 0" in server.http.get("/metrics").text)
    replace_workers(server)

    control.stop()
    assert server.stop() == 0
    again = serve()
    assert again.predict().status_code == 200
    assert first.key_id not in again.log.read_text()


def test_a_bundle_that_changes_on_disk_is_found_set_aside_and_fetched_again(
    control: Control, serve: Serve, tmp_path: Path
) -> None:
    digest = control.bundle("one")
    control.route({1: digest}, STABLE)
    server = serve(verify_every=0.2)
    cached = tmp_path / "serving" / "bundles" / digest / "transform.py"
    cached.write_text("print('evil')\n")
    eventually(lambda: "loopwright_bundle_recheck_failures_total 1" in server.http.get("/metrics").text)
    eventually(lambda: cached.is_file() and "evil" not in cached.read_text())
    assert "has changed on disk" in server.log.read_text()
    assert list((tmp_path / "serving" / "bundles").glob(f".damaged.{digest}.*"))
    replace_workers(server)
    assert "evil" not in [line for line in server.log.read_text().splitlines() if "changed" not in line]


def test_what_cannot_be_fetched_again_is_told_while_workers_answer_from_memory(
    control: Control, serve: Serve, tmp_path: Path
) -> None:
    digest = control.bundle("one")
    control.route({1: digest}, STABLE)
    server = serve(verify_every=0.2)
    control.stop()
    (tmp_path / "serving" / "bundles" / digest / "card.md").write_text("changed")
    eventually(lambda: "warnings" in server.http.get("/readyz").json())
    ready = server.http.get("/readyz")
    assert ready.status_code == 200
    assert "answers from memory" in ready.json()["warnings"][0]
    assert "loopwright_bundles_missing 1" in server.http.get("/metrics").text
    assert server.predict().status_code == 200
    control.start()
    eventually(lambda: "warnings" not in server.http.get("/readyz").json())


def pickled(control: Control, name: str) -> tuple[str, str]:
    """A bundle around a scikit-learn model; returns its digest and the pickle's."""
    rows = np.random.default_rng(7).random((100, 3)).astype(np.float32)
    model = LogisticRegression().fit(rows, rows[:, 0] > 0.5)
    stream = io.BytesIO()
    joblib.dump(model, stream, compress=3)
    data = stream.getvalue()
    found = scan_bytes(data)
    record = TrustRecord(
        digest=found.digest,
        globals=found.globals,
        requested_by="dora",
        approved_by="ada",
        reason="no converter",
        at="",
    )
    seen = np.array([[0.5, 0.25, 1.0]], dtype=np.float32)
    path = control.folder / "built" / name
    path.parent.mkdir(exist_ok=True)
    build_bundle(
        path, model="late", schema=TINY_SCHEMA, transform=TOLERANT, state={"carriers": {"UA": 1}},
        golden=Golden({"distance": [500.0], "hour": [6], "carrier": ["UA"]}, model.predict_proba(seen)[:, 1:].tolist()),
        reference={"bins": {}, "counts": {"rows": 0, "columns": {}}}, card="", provenance={}, created_at=CREATED,
        key=control.key, pickled=data, trust=sign_trust(record, control.key),
    )  # fmt: skip
    return control.depot.add(path), found.digest


@pytest.mark.parametrize("before", [False, True], ids=["alone", "after ONNX"])
def test_a_pickled_model_answers_while_it_is_trusted(control: Control, serve: Serve, before: bool) -> None:
    digest, trusted = pickled(control, "pickled")
    versions = {1: control.bundle("one"), 2: digest}
    if before:
        control.route(versions, STABLE)
    else:
        control.trusted = (trusted,)
        control.route(versions, Arm("stable", 2, 1.0))
    server = serve()
    if before:
        control.route(versions, Arm("stable", 2, 1.0))
        server.admin("refresh")
        assert server.predict().json()["model_version"] == "1", (
            "nobody trusts it: what answered before goes on"
        )
        assert "nobody trusts" in server.http.get("/v2/models").json()["models"][0]["refused"]["2"]
        control.trusted = (trusted,)
        control.route(versions, Arm("stable", 2, 1.0))
        server.admin("refresh")  # which waits for a model that loads slowly, but not for ever
        eventually(lambda: server.predict().json()["model_version"] == "2", 60)
    answer = server.predict().json()
    assert answer["model_version"] == "2"
    assert 0 < answer["outputs"][0]["data"][0] < 1

    control.trusted = ()
    control.route(versions, Arm("stable", 2, 1.0))
    server.admin("refresh")
    assert server.predict().status_code == 503
    assert "nobody trusts" in server.http.get("/readyz").json()["error"]
