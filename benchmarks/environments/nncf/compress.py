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
        # It makes a MatMulNBits of a look-up, which takes no integers: such a file does not load.
        tables = nncf.IgnoredScope(types=["Gather"], validate=False)
        mode4 = nncf.CompressWeightsMode.INT4_SYM
        made = nncf.compress_weights(model, mode=mode4, group_size=32, ignored_scope=tables)
    else:
        kind = nncf.ModelType.TRANSFORMER if mode == "int8-transformer" else None
        made = nncf.quantize(model, data, model_type=kind, subset_size=rows)
    onnx.save(made, target)
    print(f"{time.monotonic() - began:.1f}")


if __name__ == "__main__":
    main()
