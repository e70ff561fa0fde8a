"""A BentoML service that reads and writes V2 bodies. LATE_MODEL names the ONNX file."""

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1, traffic={"timeout": 10}, metrics={"enabled": True})
class Late:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            os.environ["LATE_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    @bentoml.api(route="/v2/models/late/infer")
    async def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        x = np.array([[tensor["data"][0] for tensor in inputs]], dtype=np.float32)
        score = float(self.session.run(["probabilities"], {self.input: x})[0][0, 1])
        output = {"name": "probability", "datatype": "FP64", "shape": [1], "data": [score]}
        return {"model_name": "late", "outputs": [output]}
