"""The documents of a version, generated from what is recorded."""
