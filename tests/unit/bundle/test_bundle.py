"""A sealed bundle: what goes in comes out, and one changed byte stops it before anything runs."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.manifest import MANIFEST, SEAL, Golden
from loopwright.bundle.open import open_bundle
from loopwright.bundle.seal import build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import STRICT, TINY_SCHEMA, tiny_answer, tiny_bundle
from loopwright.kernel.errors import BadInput, Conflict, NotFound, Refused, Tampered

ROWS = {
    "distance": np.array([500.0, np.nan, 2475.0]),
    "hour": np.array([6, 23, 12]),
    "carrier": np.array(["UA", None, "ZZ"], dtype=object),
}


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


def test_a_bundle_predicts_what_its_model_says(tmp_path: Path, key: SigningKey) -> None:
    sealed = tiny_bundle(tmp_path / "b", key)
    bundle = open_bundle(sealed.path, [key.public])
    wanted = [tiny_answer(500, 6, "UA"), tiny_answer(None, 23, None), tiny_answer(2475, 12, "ZZ")]
    assert bundle.digest == sealed.digest
    assert bundle.predict(ROWS)[:, 0] == pytest.approx(wanted, abs=1e-6)
    assert bundle.features(ROWS).dtype == np.float32
    bundle.smoke()


def test_rows_alone_and_together_get_the_same_answer(tmp_path: Path, key: SigningKey) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path / "b", key).path, [key.public])
    together = bundle.predict(ROWS)
    for row in range(3):
        alone = bundle.predict({name: column[row : row + 1] for name, column in ROWS.items()})
        assert alone.tolist() == together[row : row + 1].tolist()


def test_no_rows_give_no_outputs(tmp_path: Path, key: SigningKey) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path / "b", key).path, [key.public])
    assert bundle.predict({name: column[:0] for name, column in ROWS.items()}).shape == (0, 1)


def test_the_same_parts_give_the_same_digest(tmp_path: Path, key: SigningKey) -> None:
    assert tiny_bundle(tmp_path / "a", key).digest == tiny_bundle(tmp_path / "b", key).digest
    assert tiny_bundle(tmp_path / "c", key, bias=0.5).digest != tiny_bundle(tmp_path / "d", key).digest


@pytest.mark.parametrize(
    "name", ["model.onnx", "transform.py", "state.json", "card.md", "MLmodel", MANIFEST, SEAL]
)
def test_one_changed_byte_in_any_file_is_noticed(tmp_path: Path, key: SigningKey, name: str) -> None:
    path = tiny_bundle(tmp_path / "b", key).path
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(Tampered):
        open_bundle(path, [key.public])


def test_a_changed_transform_is_not_executed(tmp_path: Path, key: SigningKey) -> None:
    path = tiny_bundle(tmp_path / "b", key).path
    trace = tmp_path / "ran"
    with (path / "transform.py").open("a") as stream:
        stream.write(f"\nopen({str(trace)!r}, 'w').close()\n")
    with pytest.raises(Tampered, match=r"transform\.py was changed"):
        open_bundle(path, [key.public])
    assert not trace.exists()


def test_a_file_too_many_too_few_or_a_link_is_noticed(tmp_path: Path, key: SigningKey) -> None:
    path = tiny_bundle(tmp_path / "b", key).path
    (path / "code" / "extra.py").write_text("")
    with pytest.raises(Tampered, match=r"extra: code/extra\.py"):
        open_bundle(path, [key.public])
    (path / "code" / "extra.py").unlink()
    card = (path / "card.md").read_bytes()
    (path / "card.md").unlink()
    with pytest.raises(Tampered, match=r"missing: card\.md"):
        open_bundle(path, [key.public])
    (tmp_path / "card").write_bytes(card)
    (path / "card.md").symlink_to(tmp_path / "card")
    with pytest.raises(Tampered, match="no links"):
        open_bundle(path, [key.public])


def test_a_bundle_sealed_by_a_stranger_is_not_opened(tmp_path: Path, key: SigningKey) -> None:
    path = tiny_bundle(tmp_path / "b", SigningKey.generate()).path
    with pytest.raises(Tampered, match="a key this process does not trust"):
        open_bundle(path, [key.public])
    with pytest.raises(Tampered, match="none is configured"):
        open_bundle(path, [])


def test_no_bundle_is_said_as_such(tmp_path: Path, key: SigningKey) -> None:
    with pytest.raises(NotFound, match=r"manifest\.json"):
        open_bundle(tmp_path, [key.public])


def test_golden_rows_that_differ_are_refused(tmp_path: Path, key: SigningKey) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path / "b", key).path, [key.public])
    bundle.golden = Golden(bundle.golden.inputs, [[0.1], [0.1]])
    with pytest.raises(Refused, match="golden rows give other outputs"):
        bundle.smoke()


def test_a_failing_transform_raises_its_own_error(tmp_path: Path, key: SigningKey) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path / "b", key, transform=STRICT).path, [key.public])
    with pytest.raises(KeyError):
        bundle.predict(ROWS)


def test_columns_that_do_not_fit_are_named(tmp_path: Path, key: SigningKey) -> None:
    bundle = open_bundle(tiny_bundle(tmp_path / "b", key).path, [key.public])
    with pytest.raises(BadInput, match=r"input `hour` is missing.*did you mean `hours`\?"):
        bundle.predict({**{name: ROWS[name] for name in ("distance", "carrier")}, "hours": ROWS["hour"]})
    with pytest.raises(BadInput, match="distance: not numbers"):
        bundle.predict({**ROWS, "distance": np.array(["a", "b", "c"])})
    with pytest.raises(BadInput, match="hour: another length"):
        bundle.predict({**ROWS, "hour": ROWS["hour"][:2]})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pandas\ndef transform(i, s): return i", r"transform\.py:1: imports `pandas`"),
        ("from os import system\ndef transform(i, s): return i", "imports `os`"),
        ("def fit(i): return {}", "defines no function `transform"),
        ("def transform(i, s:", "not Python"),
        ("1 / 0\ndef transform(i, s): return i", "fails while loading"),
        ("fit = 3\ndef transform(i, s): return i", "`fit` is not a function"),
    ],
)
def test_a_transform_that_cannot_be_served_is_refused_when_built(
    tmp_path: Path, key: SigningKey, source: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        tiny_bundle(tmp_path / "b", key, transform=source)
    assert not any(tmp_path.iterdir())


def test_a_bundle_is_not_written_over(tmp_path: Path, key: SigningKey) -> None:
    tiny_bundle(tmp_path / "b", key)
    with pytest.raises(Conflict):
        tiny_bundle(tmp_path / "b", key)


def test_golden_rows_must_cover_every_input(tmp_path: Path, key: SigningKey) -> None:
    with pytest.raises(BadInput, match="golden rows must cover every input"):
        build_bundle(
            tmp_path / "b",
            model="late",
            onnx=b"",
            schema=TINY_SCHEMA,
            transform=None,
            state={},
            golden=Golden({"distance": [1.0]}, [[0.5]]),
            reference={},
            card="",
            provenance={},
            created_at=datetime(2013, 1, 1, tzinfo=UTC),
            key=key,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (Field("a", "float64"), Field("a", "float64"))}, "input named twice"),
        ({"inputs": (Field("_id", "string"),)}, "reserved"),
        ({"features": ()}, "without features"),
        ({"outputs": ("p", "q")}, "has one output"),
        ({"task": "multiclass", "classes": ("x", "y")}, "one output per class"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    plain = {"inputs": (Field("a", "float64"),), "features": ("a",), "outputs": ("p",), "task": "binary"}
    with pytest.raises(BadInput, match=message):
        Schema(**{**plain, **change})  # type: ignore[arg-type]


def test_a_schema_survives_json() -> None:
    assert Schema.from_json(json.loads(json.dumps(TINY_SCHEMA.to_json()))) == TINY_SCHEMA
    with pytest.raises(BadInput, match="not a schema"):
        Schema.from_json({"inputs": 3})


# The depot.


def test_a_depot_keeps_bundles_by_digest_and_takes_them_twice(tmp_path: Path, key: SigningKey) -> None:
    sealed = tiny_bundle(tmp_path / "b", key)
    depot = BundleDepot(tmp_path / "depot")
    assert depot.add(sealed.path) == depot.add(sealed.path) == sealed.digest
    assert depot.has(sealed.digest)
    assert depot.digests() == [sealed.digest]
    assert depot.verify(sealed.digest, [key.public]).model == "late"
    assert [path.name for path in depot.root.iterdir()] == [sealed.digest]


def test_a_depot_takes_nothing_that_does_not_match(tmp_path: Path, key: SigningKey) -> None:
    depot = BundleDepot(tmp_path / "depot")
    changed = tiny_bundle(tmp_path / "b", key).path
    (changed / "model.onnx").write_bytes(b"other")
    linked = tiny_bundle(tmp_path / "c", key).path
    (linked / "link").symlink_to("/etc/passwd")
    for path in (changed, linked):
        with pytest.raises(Tampered):
            depot.add(path)
    assert depot.digests() == []


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\\b", "", "a//b", "a\0b"])
def test_no_path_leads_out_of_a_bundle(tmp_path: Path, key: SigningKey, name: str) -> None:
    depot = BundleDepot(tmp_path / "depot")
    digest = depot.add(tiny_bundle(tmp_path / "b", key).path)
    with pytest.raises(BadInput):
        depot.file(digest, name)


@pytest.mark.parametrize("digest", ["..", "A" * 64, "a" * 63, "../" + "a" * 61])
def test_a_digest_is_a_digest(tmp_path: Path, digest: str) -> None:
    with pytest.raises(BadInput, match="not a bundle digest"):
        BundleDepot(tmp_path).path(digest)


def test_a_manifest_cannot_name_files_outside(tmp_path: Path, key: SigningKey) -> None:
    path = tiny_bundle(tmp_path / "b", key).path
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest["files"]["../evil"] = "0" * 64
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="not a path inside a bundle"):
        BundleDepot(tmp_path / "depot").add(path)


# Keys.


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    first, second = SigningKey.load_or_create(path), SigningKey.load_or_create(path)
    assert first.public == second.public
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(Refused, match=r"chmod 600"):
        SigningKey.load_or_create(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(BadInput, match="no Ed25519 private key"):
        SigningKey.load_or_create(path)


def test_a_public_key_travels_as_text_and_knows_its_signatures(key: SigningKey) -> None:
    public = PublicKey.from_text(key.public.to_text() + "\n")
    assert public == key.public
    public.verify(b"data", key.sign(b"data"))
    for data, signature in ((b"date", key.sign(b"data")), (b"data", "AAAA"), (b"data", "not base64!")):
        with pytest.raises(Tampered):
            public.verify(data, signature)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:" + "A" * 43 + "!"])
def test_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not a public key"):
        PublicKey.from_text(text)


# Plain MLflow.

PLAIN = """
import json, sys
import pandas as pd
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
assert "loopwright.bundle" not in sys.modules, "the folder needs no loopwright (MLflow itself meets our plugin)"
frame = pd.DataFrame({"distance": [500, 0], "hour": [6, 23], "carrier": ["UA", None]}, index=[7, 8])
answer = model.predict(frame)
print(json.dumps({"values": answer["probability"].tolist(), "index": answer.index.tolist()}))
"""


def test_plain_mlflow_loads_the_folder_and_predicts_from_raw_inputs(tmp_path: Path, key: SigningKey) -> None:
    path = tiny_bundle(tmp_path / "b", key).path
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["index"] == [7, 8]
    assert answer["values"] == pytest.approx([tiny_answer(500, 6, "UA"), tiny_answer(0, 23, None)], abs=1e-6)
    open_bundle(path, [key.public])  # loading wrote nothing into the folder


def test_plain_mlflow_loads_no_changed_bundle(tmp_path: Path, key: SigningKey) -> None:
    path = tiny_bundle(tmp_path / "b", key).path
    (path / "state.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "state.json was changed after the bundle was sealed" in done.stderr
