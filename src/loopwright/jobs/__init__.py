"""Asynchronous inference: a durable queue in the ledger, and the workers that take from it."""
