"""MLServer with a custom runtime around ONNX Runtime: V2 over REST, one process. Arguments: MODEL PORT."""

import asyncio
import sys

import numpy as np
import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

MODEL, PORT = sys.argv[1], int(sys.argv[2])


class Late(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        columns = [NumpyCodec.decode_input(tensor).reshape(-1) for tensor in payload.inputs]
        x = np.stack(columns, axis=1).astype(np.float32)
        scores = self.session.run(["probabilities"], {self.input: x})[0][:, 1]
        output = NumpyCodec.encode_output("probability", scores.astype(np.float64))
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    settings = Settings(
        http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, host="127.0.0.1", parallel_workers=0, debug=False,
    )  # fmt: skip
    server = MLServer(settings)
    await server.start([ModelSettings(name="late", implementation=Late)])


asyncio.run(main())
