"""The sealed thing that is served: built once, content-addressed, signed, opened only when every byte matches.

Import the file you need (`bundle.seal`, `bundle.open`, `bundle.depot`, …): only `open` loads ONNX Runtime.
"""
