"""Ray Serve with one replica that reads and writes V2 bodies. Arguments: MODEL PORT."""

import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request

MODEL, PORT = sys.argv[1], int(sys.argv[2])


@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Late:
    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    async def __call__(self, request: Request) -> dict[str, Any]:
        inputs = (await request.json())["inputs"]
        x = np.array([[tensor["data"][0] for tensor in inputs]], dtype=np.float32)
        score = float(self.session.run(["probabilities"], {self.input: x})[0][0, 1])
        output = {"name": "probability", "datatype": "FP64", "shape": [1], "data": [score]}
        return {"model_name": "late", "outputs": [output]}


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Late.bind(MODEL), route_prefix="/v2/models/late/infer")
while True:
    time.sleep(3600)
