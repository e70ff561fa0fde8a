"""Builds a bundle: writes its files, its manifest and its seal, and makes the folder plain MLflow can load."""

import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from loopwright.bundle.archive import scan_archive
from loopwright.bundle.folder import safe_name
from loopwright.bundle.forms import (
    EXPORTED,
    LIGHTGBM,
    NATIVES,
    ONNX,
    PICKLED,
    PYFUNC,
    TORCHSCRIPT,
    TRUST,
    XGBOOST,
)
from loopwright.bundle.keys import PublicKey, SigningKey
from loopwright.bundle.manifest import FORMAT, MANIFEST, SEAL, Golden, Manifest, OnlineView, seal_manifest
from loopwright.bundle.signature import Schema
from loopwright.bundle.transform import load_transform
from loopwright.bundle.trust import SignedTrust, check_trusted
from loopwright.kernel.clock import iso
from loopwright.kernel.digest import canonical_json, sha256_bytes
from loopwright.kernel.errors import BadInput, Conflict, Unavailable

_LOADER = "loopwright_bundle_v1"
_LIBRARIES = ("numpy", "onnxruntime", "pandas")
_PICKLED_LIBRARIES = ("joblib", "numpy", "pandas", "scikit-learn")
_NATIVE_LIBRARIES = {
    TORCHSCRIPT: ("numpy", "pandas", "torch"),
    EXPORTED: ("numpy", "pandas", "torch"),
    LIGHTGBM: ("lightgbm", "numpy", "pandas"),
    XGBOOST: ("numpy", "pandas", "xgboost"),
    PYFUNC: ("mlflow", "numpy", "pandas"),
}
_PYTHON = ".".join(map(str, sys.version_info[:3]))


@dataclass(frozen=True, slots=True)
class SealedBundle:
    """A bundle that was just built; `digest` is the SHA-256 of its manifest.json."""

    path: Path
    digest: str


def build_bundle(
    dest: Path,
    *,
    model: str,
    onnx: bytes | None = None,
    schema: Schema,
    transform: str | None,
    state: Mapping[str, Any],
    golden: Golden,
    reference: Mapping[str, Any],
    card: str,
    provenance: Mapping[str, Any],
    created_at: datetime,
    key: SigningKey,
    extra_files: Mapping[str, bytes] = MappingProxyType({}),
    pickled: bytes | None = None,
    native: tuple[str, bytes] | None = None,
    trust: SignedTrust | None = None,
    trusted: Sequence[PublicKey] = (),
    views: Sequence[OnlineView] = (),
) -> SealedBundle:
    """Write a sealed bundle to `dest` (must not exist) and return it; `dest` appears whole or not at all.

    transform: numpy-only source, or None when features are inputs by the same name. extra_files: by path in the bundle,
    sealed like the rest and never loaded by serving. In the place of `onnx`, a bundle may hold `native`, a model in
    another form under its name (`runners.NATIVES`, or PYFUNC), or `pickled`, an estimator; the latter and PYFUNC with
    `trust`, the signed record that they may be loaded, checked with `key` and `trusted`. The same
    arguments give the same digest. Raises BadInput for a transform or golden rows that cannot work, Refused for a model
    nobody may trust, Conflict when `dest` exists.
    """
    if dest.exists():
        raise Conflict(
            "something is there already", where=str(dest), next="Choose a folder that does not exist."
        )
    if transform is not None:
        load_transform(transform)
    _check_golden(golden, schema)
    contents: dict[str, bytes] = {
        **_model(onnx, pickled, native, trust, (key.public, *trusted)),
        "state.json": canonical_json(dict(state)),
        "golden.json": canonical_json(msgspec.to_builtins(golden)),
        "reference.json": canonical_json(dict(reference)),
        "card.md": card.encode(),
        "MLmodel": _mlmodel(model, schema, created_at),
        f"code/{_LOADER}.py": Path(__file__).with_name("mlflow_loader.py").read_bytes(),
        # A file where Python would make a folder: whoever imports the loader leaves no bytecode in the sealed bundle.
        "code/__pycache__": b"",
        "requirements.txt": _requirements(
            _LIBRARIES if onnx is not None else _NATIVE_LIBRARIES[native[0]] if native else _PICKLED_LIBRARIES
        ),
        "python_env.yaml": _python_env(),
    }
    if transform is not None:
        contents["transform.py"] = transform.encode()
    for name, data in extra_files.items():
        if safe_name(name) in {*contents, MANIFEST, SEAL}:
            raise BadInput("a bundle has a file of this name already", where="extra_files", got=name)
        contents[name] = data
    manifest = Manifest(
        format=FORMAT,
        model=model,
        created_at=iso(created_at),
        files={name: sha256_bytes(data) for name, data in contents.items()},
        schema=schema,
        provenance=dict(provenance),
        views=tuple(views),
    ).to_bytes()
    contents[MANIFEST] = manifest
    contents[SEAL] = seal_manifest(manifest, key)
    _write(dest, contents)
    return SealedBundle(path=dest, digest=sha256_bytes(manifest))


def _model(
    onnx: bytes | None,
    pickled: bytes | None,
    native: tuple[str, bytes] | None,
    trust: SignedTrust | None,
    keys: Sequence[PublicKey],
) -> dict[str, bytes]:
    """The model's files: the graph, or another form of it and, where that runs code, why it may be loaded."""
    given = [form for form in (onnx, pickled, native) if form is not None]
    name, data = native or ("", b"")
    if len(given) != 1 or (native and name not in (*NATIVES, PYFUNC)):
        raise BadInput(
            "a bundle holds one model",
            where="bundle",
            got=name or f"{len(given)} models",
            wanted="`onnx`, `native`, or `pickled` with the signed `trust` in it",
        )
    if onnx is not None:
        return {ONNX: onnx}
    if name in NATIVES:
        return {name: data}
    if trust is None:
        raise BadInput("a model that runs code wants the signed `trust` in it", where="bundle", got=name)
    if pickled is not None:
        found = check_trusted(pickled, trust, keys)
        name, data = PICKLED[0] if found.format.startswith("joblib") else PICKLED[1], pickled
    else:
        check_trusted(data, trust, keys, scan=scan_archive)
    return {name: data, TRUST: trust.to_bytes()}


def _write(dest: Path, contents: Mapping[str, bytes]) -> None:
    staging = dest.with_name(f".{dest.name}.{secrets.token_hex(6)}")
    try:
        for name, data in contents.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        staging.rename(dest)
    except OSError as error:
        raise Unavailable(
            f"cannot write the bundle ({error.strerror or error})",
            where=str(dest),
            next="Check free space and permissions.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_golden(golden: Golden, schema: Schema) -> None:
    rows = len(golden.outputs)
    names = [field.name for field in schema.inputs]
    if rows == 0 or sorted(golden.inputs) != sorted(names):
        raise BadInput(
            "golden rows must cover every input",
            where="golden",
            got=sorted(golden.inputs),
            wanted=str(sorted(names)),
        )
    lengths = {len(column) for column in golden.inputs.values()} | {rows}
    widths = {len(row) for row in golden.outputs}
    if len(lengths) != 1 or widths != {len(schema.outputs)}:
        raise BadInput(
            "golden inputs and outputs differ in size", where="golden", got=sorted(lengths | widths)
        )


def _mlmodel(model: str, schema: Schema, created_at: datetime) -> bytes:
    """MLflow's own description. Numbers are `any`: MLflow refuses integers for `double`, our loader converts."""
    inputs = [
        {"type": "string" if field.dtype == "string" else "any", "name": field.name, "required": True}
        for field in schema.inputs
    ]
    outputs = [{"type": "double", "name": name, "required": True} for name in schema.outputs]
    description = {
        "flavors": {
            "python_function": {
                "loader_module": _LOADER,
                "code": "code",
                "env": {"virtualenv": "python_env.yaml"},
                "python_version": _PYTHON,
            }
        },
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
        "metadata": {"loopwright_model": model, "loopwright_format": FORMAT},
        "utc_time_created": created_at.strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    # JSON is YAML, so MLflow's YAML reader takes this as it is.
    return json.dumps(description, indent=1, sort_keys=True).encode()


def _requirements(libraries: Sequence[str]) -> bytes:
    lines = []
    for package in libraries:
        try:
            lines.append(f"{package}=={version(package)}")
        except PackageNotFoundError:
            lines.append(package)
    return ("\n".join(lines) + "\n").encode()


def _python_env() -> bytes:
    env = {"python": _PYTHON, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    return json.dumps(env, indent=1).encode()
