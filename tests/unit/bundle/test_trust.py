"""A pickled model is served only with the word of two people about exactly these bytes and these imports."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.forms import TRUST
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.manifest import Golden
from loopwright.bundle.open import open_bundle
from loopwright.bundle.pickles import scan_bytes
from loopwright.bundle.routes import Arm
from loopwright.bundle.seal import SealedBundle, build_bundle
from loopwright.bundle.signature import Field, Schema
from loopwright.bundle.testing import CREATED, route_for, table_of
from loopwright.bundle.trust import (
    SignedTrust,
    TrustRecord,
    check_trusted,
    load_trusted,
    sign_trust,
    verify_trust,
)
from loopwright.kernel.errors import BadInput, Refused, Tampered
from loopwright.serving.loading import load_models

KEY = SigningKey.generate()
ROWS = np.random.default_rng(7).random((200, 2)).astype(np.float32)
LATE = (ROWS.sum(axis=1) > 1).astype(int)
FOREST = RandomForestClassifier(5, random_state=7).fit(ROWS, LATE)


def dumped(model: Any) -> bytes:
    stream = io.BytesIO()
    joblib.dump(model, stream)
    return stream.getvalue()


def trust(data: bytes, key: SigningKey = KEY, **changes: Any) -> SignedTrust:
    found = scan_bytes(data)
    record = TrustRecord(
        digest=found.digest,
        globals=found.globals,
        requested_by="dora",
        approved_by="ada",
        reason="no converter",
        at="",
    )
    return sign_trust(msgspec.structs.replace(record, **changes), key)


def bundle(
    dest: Path, model: Any, task: Any = "binary", classes: tuple[str, ...] = (), **given: Any
) -> SealedBundle:
    """A bundle around `model` over two inputs; keywords replace what `build_bundle` is given."""
    outputs = {"binary": ("probability",), "regression": ("prediction",)}.get(task, classes)
    answers = model.predict(ROWS[:2]).reshape(2, 1) if task == "regression" else model.predict_proba(ROWS[:2])
    if classes:
        answers = answers[:, [[str(one) for one in model.classes_].index(name) for name in classes]]
    golden = (answers[:, -1:] if task == "binary" else answers).tolist()
    data = given.pop("pickled", dumped(model))
    options = {
        "model": "late", "transform": None, "state": {}, "reference": {}, "card": "", "provenance": {},
        "created_at": CREATED, "key": KEY, "pickled": data, "trust": trust(data or b""),
        "schema": Schema(
            inputs=(Field("a", "float64"), Field("b", "float64")), features=("a", "b"), outputs=outputs, task=task,
            classes=classes,
        ),
        "golden": Golden({"a": ROWS[:2, 0].tolist(), "b": ROWS[:2, 1].tolist()}, golden),
    }  # fmt: skip
    return build_bundle(dest, **{**options, **given})


def predicted(sealed: SealedBundle, **options: Any) -> np.ndarray[Any, Any]:
    opened = open_bundle(sealed.path, [KEY.public], **options)
    opened.smoke()
    return opened.predict({"a": ROWS[:, 0].astype(float), "b": ROWS[:, 1].astype(float)})


def test_a_trusted_estimator_answers_from_a_sealed_bundle(tmp_path: Path) -> None:
    sealed = bundle(tmp_path / "b", FOREST)
    assert np.allclose(predicted(sealed)[:, 0], FOREST.predict_proba(ROWS)[:, 1])
    assert open_bundle(sealed.path, [KEY.public]).pickled == scan_bytes(dumped(FOREST)).digest
    assert (sealed.path / "model.joblib").is_file()
    assert "scikit-learn==" in (sealed.path / "requirements.txt").read_text()


def test_numbers_and_many_classes_come_in_the_schemas_order(tmp_path: Path) -> None:
    line = LinearRegression().fit(ROWS, ROWS[:, 0] * 2)
    numbers = predicted(bundle(tmp_path / "line", line, "regression", pickled=pickle.dumps(line)))
    assert np.allclose(numbers[:, 0], line.predict(ROWS))
    assert (tmp_path / "line" / "model.pkl").is_file()
    kinds = LogisticRegression().fit(
        ROWS, np.array(["low", "mid", "top"])[(ROWS.sum(axis=1) * 1.49).astype(int)]
    )
    many = predicted(bundle(tmp_path / "kinds", kinds, "multiclass", ("top", "low", "mid")))
    assert np.allclose(many, kinds.predict_proba(ROWS)[:, [2, 0, 1]])


def test_no_pickle_gets_into_a_bundle_without_its_own_trust(tmp_path: Path) -> None:
    other = dumped(LogisticRegression().fit(ROWS, LATE))
    for given, error in (
        ({"trust": None}, BadInput),
        ({"trust": trust(other)}, Tampered),
        ({"trust": trust(dumped(FOREST), SigningKey.generate())}, Tampered),
        ({"trust": trust(dumped(FOREST), globals=("numpy.ndarray",))}, Refused),
        ({"onnx": b"graph"}, BadInput),
        ({"pickled": None}, BadInput),
    ):
        with pytest.raises(error):
            bundle(tmp_path / "b", FOREST, **given)
    assert not list(tmp_path.iterdir())


def test_a_record_that_allows_less_or_more_than_the_file_imports_allows_nothing() -> None:
    data = dumped(FOREST)
    for allowed in (scan_bytes(data).globals[1:], (*scan_bytes(data).globals, "collections.OrderedDict")):
        with pytest.raises(Refused, match="other names than were approved"):
            load_trusted(data, trust(data, globals=allowed), [KEY.public])


def test_one_person_is_not_enough(tmp_path: Path) -> None:
    data = dumped(FOREST)
    with pytest.raises(Refused, match="another person"):
        trust(data, approved_by="dora")
    forged = trust(data)
    text = forged.record_json.replace('"ada"', '"dora"')
    with pytest.raises(Tampered, match="two people"):
        verify_trust(SignedTrust(text, KEY.sign(text.encode()), KEY.public.key_id), [KEY.public])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: msgspec.structs.replace(s, record_json=s.record_json.replace("dora", "dina")),
        lambda s: msgspec.structs.replace(s, signature=KEY.sign(b"something else")),
        lambda s: msgspec.structs.replace(s, key_id="0" * 16),
        lambda s: SignedTrust("{}", KEY.sign(b"{}"), KEY.public.key_id),
    ],
)
def test_a_forged_record_is_noticed(spoil: Callable[[SignedTrust], SignedTrust]) -> None:
    data = dumped(FOREST)
    with pytest.raises(Tampered):
        check_trusted(data, spoil(trust(data)), [KEY.public])


def test_a_record_by_a_revoked_key_counts_no_more() -> None:
    data = dumped(FOREST)
    with pytest.raises(Tampered, match="does not trust"):
        load_trusted(data, trust(data), [SigningKey.generate().public])


def test_the_bytes_that_were_checked_are_those_that_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(dumped(FOREST))
    signed = trust(path.read_bytes())
    assert isinstance(load_trusted(path, signed, [KEY.public]), RandomForestClassifier)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(Tampered, match="other bytes"):
        load_trusted(path, signed, [KEY.public])


def test_a_bundle_whose_record_was_taken_out_is_not_opened(tmp_path: Path) -> None:
    sealed = bundle(tmp_path / "b", FOREST)
    (sealed.path / TRUST).unlink()
    with pytest.raises(Tampered, match=r"missing: trust\.json"):
        open_bundle(sealed.path, [KEY.public])


def test_trust_that_was_withdrawn_stops_the_bundle(tmp_path: Path) -> None:
    sealed = bundle(tmp_path / "b", FOREST)
    digest = scan_bytes(dumped(FOREST)).digest
    assert len(predicted(sealed, trusted=[digest])) == len(ROWS)
    with pytest.raises(Refused, match=r"nobody trusts this model \(any more\)"):
        open_bundle(sealed.path, [KEY.public], trusted=[])


def test_serving_loads_what_the_route_table_trusts_and_drops_it_when_it_does_no_more(tmp_path: Path) -> None:
    depot = BundleDepot(tmp_path / "depot")
    digest = depot.add(bundle(tmp_path / "b", FOREST).path)
    pickled = scan_bytes(dumped(FOREST)).digest
    route = route_for(KEY, {1: digest}, [Arm("stable", 1, 1.0)])
    serving = load_models(table_of(1, route, trusted=[pickled]), [KEY.public], depot, {}, {})
    assert serving["late"].stable is not None
    after = load_models(table_of(2, route), [KEY.public], depot, serving, {})
    assert after["late"].stable is None
    assert "nobody trusts" in after["late"].refused[1]
    fresh = load_models(table_of(3, route), [KEY.public], depot, {}, {})
    assert fresh["late"].stable is None


def test_an_estimator_that_cannot_answer_is_refused(tmp_path: Path) -> None:
    line = LinearRegression().fit(ROWS, LATE)
    sealed = bundle(tmp_path / "b", FOREST, pickled=dumped(line), trust=trust(dumped(line)))
    with pytest.raises(BadInput, match="without `predict_proba`"):
        open_bundle(sealed.path, [KEY.public])


def test_a_library_that_is_missing_here_is_said() -> None:
    data = b"cno_such_library\nModel\n)R."
    with pytest.raises(BadInput, match="No module named 'no_such_library'"):
        load_trusted(data, trust(data), [KEY.public])


def test_plain_mlflow_does_not_load_it(tmp_path: Path) -> None:
    sealed = bundle(tmp_path / "b", FOREST)
    code = f"import mlflow; mlflow.pyfunc.load_model({str(sealed.path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode != 0
    assert "the model is no ONNX graph" in done.stderr


def test_whoever_serves_onnx_never_meets_scikit_learn() -> None:
    code = "import loopwright.serving.worker, sys; print('sklearn' in sys.modules, 'joblib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
