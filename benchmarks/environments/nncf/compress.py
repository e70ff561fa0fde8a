"""NNCF on an ONNX model: compress.py MODE SOURCE CALIBRATION.npz TARGET. MODE: int8, int8-transformer, int4."""

import sys
import time

import nncf
import numpy as np
import onnx


def main() -> None:
    mode, source, calibration, target = sys.argv[1:]
    model = onnx.load(source)
    with np.load(calibration) as held:
        feeds = {name: held[name] for name in held.files}
    rows = len(next(iter(feeds.values())))
    data = nncf.Dataset(
        [{name: values[row : row + 1] for name, values in feeds.items()} for row in range(rows)]
    )
    began = time.monotonic()
    if mode == "int4":
        made = nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32, all_layers=True
        )
    else:
        kind = nncf.ModelType.TRANSFORMER if mode == "int8-transformer" else None
        made = nncf.quantize(model, data, model_type=kind, subset_size=rows)
    onnx.save(made, target)
    print(f"{time.monotonic() - began:.1f}")


if __name__ == "__main__":
    main()
