"""The data plane: worker processes that answer only with approved, sealed versions and lose no acknowledged prediction.

Imports nothing but bundle, stats and kernel (and numpy, ONNX Runtime, msgspec, uvicorn), so that a worker stays small.
"""
