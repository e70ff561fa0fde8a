"""Opens a sealed bundle for prediction: everything is verified before anything is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from loopwright.bundle.folder import verify_folder
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.manifest import Golden, Manifest
from loopwright.bundle.signature import Schema, as_columns
from loopwright.bundle.transform import Transform, identity, load_transform, stack
from loopwright.kernel.errors import BadInput, Refused, Tampered

_LOADED = ("model.onnx", "transform.py", "state.json", "golden.json", "reference.json", "card.md")


class Bundle:
    """A loaded model. Safe to use from several threads; the same inputs give the same outputs on one machine."""

    def __init__(
        self, manifest: Manifest, digest: str, contents: Mapping[str, bytes], *, threads: int
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
        self._session = _session(contents["model.onnx"], threads)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [_pick_output(self._session)]

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
        raw = self._session.run(self._outputs, {self._input: features})[0]
        result = np.asarray(raw, dtype=np.float64).reshape(rows, -1)
        if self.schema.task == "binary" and result.shape[1] == 2:
            result = result[:, 1:]
        if result.shape[1] != width:
            raise BadInput("the model's output has another width", got=result.shape[1], wanted=str(width))
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

    @property
    def name(self) -> str:
        """Model and short digest, for messages."""
        return f"{self.manifest.model}@{self.digest[:12]}"

    def _features(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(columns[self.schema.inputs[0].name])
        return stack(self._transform.transform(columns, self.state), self.schema.features, rows)


def open_bundle(path: Path, keys: Sequence[PublicKey], *, threads: int = 1) -> Bundle:
    """Verify digests, file list and seal of the bundle at `path`, then load it.

    keys: the public keys trusted to seal. threads: ONNX Runtime threads per prediction. Raises NotFound when nothing is
    there, Tampered when one byte differs; nothing of it has been loaded or executed then.
    """
    manifest, digest, contents = verify_folder(path, keys, keep=_LOADED)
    missing = [name for name in _LOADED if name not in contents and name != "transform.py"]
    if missing:
        raise Tampered("the manifest names no such file", where=str(path), got=", ".join(missing))
    return Bundle(manifest, digest, contents, threads=threads)


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # An idle session must not burn a core between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise BadInput(f"ONNX Runtime cannot load the model ({error})", where="model.onnx") from error


def _pick_output(session: ort.InferenceSession) -> str:
    outputs = [o.name for o in session.get_outputs() if o.type in ("tensor(float)", "tensor(double)")]
    if not outputs:
        kinds = ", ".join(f"{o.name}: {o.type}" for o in session.get_outputs())
        raise BadInput(
            "the model has no float output", where="model.onnx", got=kinds, wanted="a tensor, not a map"
        )
    return str(next((name for name in outputs if "prob" in name.lower()), outputs[-1]))
