"""Opens a sealed bundle for prediction: everything is verified before anything is loaded."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loopwright.bundle.archive import scan_archive
from loopwright.bundle.folder import verify_folder
from loopwright.bundle.forms import ISOLATED, ONNX, PICKLED, TRUST, TRUSTED_ONLY, model_file
from loopwright.bundle.isolated import IsolatedRunner, Limits
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.manifest import Golden, Manifest
from loopwright.bundle.pickles import scan_bytes
from loopwright.bundle.runners import OnnxRunner, Runner
from loopwright.bundle.signature import Schema, as_columns
from loopwright.bundle.transform import Transform, identity, load_transform, stack
from loopwright.bundle.trust import SignedTrust, check_trusted
from loopwright.kernel.errors import BadInput, Refused, Tampered

_NEEDED = ("state.json", "golden.json", "reference.json", "card.md")
_LOADED = (ONNX, *ISOLATED, TRUST, "transform.py", *_NEEDED)
_ASK = "Export the model to ONNX, or ask for trust: loopwright trust request FILE --reason …"


class Bundle:
    """A loaded model. Safe to use from several threads; the same inputs give the same outputs on one machine.

    isolated: the model answers from a process of its own, so a call waits; everything else runs here.
    """

    def __init__(
        self, manifest: Manifest, digest: str, contents: Mapping[str, bytes], runner: Runner
    ) -> None:
        self.manifest = manifest
        self.digest = digest
        self.schema: Schema = manifest.schema
        self.state: dict[str, Any] = msgspec.json.decode(contents["state.json"], type=dict[str, Any])
        self.golden = msgspec.json.decode(contents["golden.json"], type=Golden)
        self.reference: dict[str, Any] = msgspec.json.decode(contents["reference.json"], type=dict[str, Any])
        self.card = contents["card.md"].decode()
        source = contents.get("transform.py")
        self._transform = load_transform(source.decode()) if source else Transform(identity, None)
        self._runner = runner
        inputs = [field.name for field in self.schema.inputs if field.dtype != "string"]
        self.direct = (
            not source and inputs == list(self.schema.features) and len(inputs) == len(self.schema.inputs)
        )
        """Whether the model sees the inputs as they come, in their order."""
        self.isolated: bool = runner.isolated
        self._bytes = sum(map(len, contents.values())) - max(map(len, contents.values()))

    def features(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return what the model sees: float32 (n, len(schema.features))."""
        return self._features(as_columns(inputs, self.schema))

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """Return float64 (n, len(schema.outputs)) for raw input columns of length n.

        Raises BadInput for columns that do not fit the schema, and whatever the transform raises.
        """
        return self.predict_columns(as_columns(inputs, self.schema))

    def predict_columns(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
        """`predict` for columns that are already as `as_columns` makes them (the serving path)."""
        return self.predict_features(self._features(columns))

    def predict_features(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Run the model alone on float32 (n, f)."""
        rows = len(features)
        width = len(self.schema.outputs)
        if rows == 0:
            return np.empty((0, width))
        result = np.asarray(self._runner(features), dtype=np.float64).reshape(rows, -1)
        if self.schema.task == "binary" and result.shape[1] == 2:
            result = result[:, 1:]
        if result.shape[1] != width:
            raise BadInput("the model's output has another width", got=result.shape[1], wanted=str(width))
        return result

    def predict_one(self, features: NDArray[np.float32]) -> list[float]:
        """`predict_features` for float32 (1, f), at half of what it costs around a small model."""
        result: list[float] = self._runner(features).ravel().tolist()
        if len(result) == 2 and self.schema.task == "binary":
            del result[0]
        if len(result) != len(self.schema.outputs):
            raise BadInput(
                "the model's output has another width", got=len(result), wanted=str(len(self.schema.outputs))
            )
        return result

    def smoke(self) -> None:
        """Predict the golden rows; raises Refused when one differs by more than the tolerance."""
        inputs = {
            field.name: np.array(self.golden.inputs[field.name], dtype=object) for field in self.schema.inputs
        }
        try:
            actual = self.predict(inputs)
        except Exception as error:
            raise Refused(
                f"golden rows cannot be predicted ({type(error).__name__}: {error})", where=self.name
            ) from error
        wanted = np.array(self.golden.outputs, dtype=np.float64)
        difference = float(np.max(np.abs(actual - wanted)))
        if not difference <= self.golden.tolerance:
            raise Refused(
                "golden rows give other outputs here",
                where=self.name,
                got=f"a difference of {difference:g}",
                wanted=f"at most {self.golden.tolerance:g}",
            )

    def memory(self) -> int:
        """About how many bytes are in memory because it is loaded; of an isolated model, its process's with them."""
        return self._runner.memory() + 4 * self._bytes

    def limit_calls(self, seconds: float) -> None:
        """Bound what one row may take of an isolated model; a call that takes longer ends its process."""
        self._runner.limit(seconds)

    def close(self) -> None:
        """End the model's process, if it has one: calls fail from then on. Is idempotent."""
        self._runner.close()

    @property
    def pickled(self) -> str | None:
        """The digest of the model that somebody has to trust; None for forms that need no trust."""
        return trusted_digest(self.manifest)

    @property
    def name(self) -> str:
        """Model and short digest, for messages."""
        return f"{self.manifest.model}@{self.digest[:12]}"

    def _features(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(columns[self.schema.inputs[0].name])
        return stack(self._transform.transform(columns, self.state), self.schema.features, rows)


def trusted_digest(manifest: Manifest) -> str | None:
    """The digest of the one file in a bundle that runs what it pleases when it is loaded; None where there is none."""
    return next((digest for name, digest in manifest.files.items() if name in TRUSTED_ONLY), None)


def open_bundle(
    path: Path,
    keys: Sequence[PublicKey],
    *,
    threads: int = 1,
    trusted: Container[str] | None = None,
    limits: Limits | None = None,
) -> Bundle:
    """Verify digests, file list and seal of the bundle at `path`, then load it.

    keys: the public keys trusted to seal. threads: ONNX Runtime threads per prediction. trusted: digests of models that
    run code and may be loaded now; None: whatever a signed record in the bundle allows. limits: what the process of a
    model may take that does not run here. Raises NotFound when nothing is there, Tampered when one byte differs,
    Refused for a model that needs trust and has none; nothing of it was executed then, nor seen by another process.
    """
    manifest, digest, contents = verify_folder(path, keys, keep=_LOADED)
    model, trust = _checked(manifest, contents, keys, trusted, where=str(path))
    runner: Runner
    if model == ONNX:
        runner = OnnxRunner(contents[ONNX], threads)
    else:
        runner = IsolatedRunner(
            model, contents[model], manifest.schema, limits=limits, trust=trust, keys=keys
        )
    try:
        return Bundle(manifest, digest, contents, runner)
    except BaseException:
        runner.close()
        raise


def check_bundle(
    path: Path, keys: Sequence[PublicKey], *, trusted: Container[str] | None = None
) -> tuple[Manifest, str]:
    """Verify the bundle at `path` as `open_bundle` does, load nothing, and return its manifest and digest."""
    manifest, digest, contents = verify_folder(path, keys, keep=_LOADED)
    _checked(manifest, contents, keys, trusted, where=str(path))
    return manifest, digest


def _checked(
    manifest: Manifest,
    contents: Mapping[str, bytes],
    keys: Sequence[PublicKey],
    trusted: Container[str] | None,
    *,
    where: str,
) -> tuple[str, SignedTrust | None]:
    """The model's file, and the record it is trusted by when it needs one."""
    missing = [name for name in _NEEDED if name not in contents]
    model = model_file(contents)
    if missing or model is None:
        raise Tampered("the manifest names no such file", where=where, got=", ".join(missing) or "one model")
    if model not in TRUSTED_ONLY:
        return model, None
    about = f"{manifest.model}: {model}"
    if TRUST not in contents:
        raise Refused("a model that runs code is not loaded without a trust record", where=about, next=_ASK)
    if trusted is not None and manifest.files[model] not in trusted:
        raise Refused(
            "nobody trusts this model (any more)", where=about, got=manifest.files[model], next=_ASK
        )
    signed = SignedTrust.from_bytes(contents[TRUST], where=about)
    check_trusted(contents[model], signed, keys, scan=scan_bytes if model in PICKLED else scan_archive)
    return model, signed
