"""Steps on gradient-boosted trees in ONNX."""
