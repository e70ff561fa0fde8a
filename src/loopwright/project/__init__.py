"""One `loop.yaml` says a model's whole life; this room reads it into a frozen, typed spec."""
