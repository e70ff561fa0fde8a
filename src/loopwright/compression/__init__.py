"""Compression: smaller and faster models, measured against the one they came from."""
