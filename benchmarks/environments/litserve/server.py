"""LitServe with one worker that reads and writes V2 bodies. Arguments: MODEL PORT."""

import sys
from typing import Any

import litserve as ls
import numpy as np
import onnxruntime as ort

MODEL, PORT = sys.argv[1], int(sys.argv[2])


class Late(ls.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def decode_request(self, request: dict[str, Any]) -> Any:
        return np.array([[tensor["data"][0] for tensor in request["inputs"]]], dtype=np.float32)

    def predict(self, x: Any) -> float:
        return float(self.session.run(["probabilities"], {self.input: x})[0][0, 1])

    def encode_response(self, score: float) -> dict[str, Any]:
        output = {"name": "probability", "datatype": "FP64", "shape": [1], "data": [score]}
        return {"model_name": "late", "outputs": [output]}


if __name__ == "__main__":
    api = Late(api_path="/v2/models/late/infer")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=PORT, host="127.0.0.1", num_api_servers=1, log_level="error", generate_client_file=False)
