"""Steps on ONNX graphs: precision, calibration, sensitivity. None of them needs torch."""
