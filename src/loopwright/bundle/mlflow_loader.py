"""Loads a Loopwright bundle as a plain MLflow pyfunc model.

Copied into bundles: needs no Loopwright, only numpy, pandas and onnxruntime. Checks every file against manifest.json
first; whoever needs the signature checked as well serves the bundle with Loopwright.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _load_pyfunc(path: str) -> "LoadedBundle":
    return LoadedBundle(path)


class LoadedBundle:
    """predict(DataFrame or dict of columns with the raw inputs) -> DataFrame with the schema's outputs."""

    def __init__(self, root: str) -> None:
        import onnxruntime

        def read(name: str) -> bytes:
            return Path(root, *name.split("/")).read_bytes()

        manifest = json.loads(read("manifest.json"))
        for name, digest in manifest["files"].items():
            if hashlib.sha256(read(name)).hexdigest() != digest:
                raise RuntimeError(
                    f"{root}: {name} was changed after the bundle was sealed; it is not loaded"
                )
        if "model.onnx" not in manifest["files"]:
            raise RuntimeError(
                f"{root}: the model is no ONNX graph; only Loopwright, which knows who trusts it with what, loads it"
            )
        self.schema: dict[str, Any] = manifest["schema"]
        self.state: dict[str, Any] = json.loads(read("state.json"))
        self.transform: Callable[..., dict[str, Any]] | None = None
        if "transform.py" in manifest["files"]:
            namespace: dict[str, Any] = {"__name__": "loopwright_transform"}
            exec(compile(read("transform.py").decode(), "transform.py", "exec"), namespace)  # noqa: S102
            self.transform = namespace["transform"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            read("model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        outputs = [
            o.name for o in self.session.get_outputs() if o.type in ("tensor(float)", "tensor(double)")
        ]
        self.output = next((name for name in outputs if "prob" in name.lower()), outputs[-1])

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return one row of outputs per row of `model_input`, on the same index."""
        import pandas

        frame = pandas.DataFrame(model_input)
        wanted = [field["name"] for field in self.schema["inputs"]]
        columns: dict[str, Any] = {}
        for field in self.schema["inputs"]:
            name = field["name"]
            if name not in frame:
                raise ValueError(f"input `{name}` is missing; the model wants {wanted}")
            if field["dtype"] == "string":
                text = frame[name].astype(object)
                columns[name] = np.array(text.where(text.notna(), None), dtype=object)
            else:
                columns[name] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        features = self.transform(columns, self.state) if self.transform else columns
        matrix = np.empty((len(frame), len(self.schema["features"])), dtype=np.float32)
        for position, name in enumerate(self.schema["features"]):
            matrix[:, position] = features[name]
        raw = np.asarray(self.session.run([self.output], {self.input: matrix})[0], dtype=np.float64)
        raw = raw.reshape(len(frame), -1)
        if self.schema["task"] == "binary":
            raw = raw[:, -1:]
        return pandas.DataFrame(raw, columns=self.schema["outputs"], index=frame.index)
