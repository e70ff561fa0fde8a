"""Loading and unloading models in every worker at once, from the supervisor's side."""

import asyncio
import itertools
from typing import Any

from loopwright.serving.slots import WorkerProcess, Workers

SECONDS = 120.0
"""How long workers may take to load a model."""


class Reside:
    """Asks all workers and waits for each one's answer; one that ends meanwhile is not waited for."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._numbers = itertools.count()
        self._told: dict[int, dict[WorkerProcess, tuple[int, str]]] = {}

    def heard(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        """Take a worker's answer."""
        told = self._told.get(message["resided"])
        if told is not None:
            told[worker] = (message["status"], message["error"])

    async def ask(self, act: str, model: str) -> tuple[int, dict[str, Any]]:
        """ "load" or "unload" a model; the worst of the workers' answers. Raises TimeoutError."""
        number = next(self._numbers)
        told = self._told[number] = {}
        asked = [slot.worker for slot in self._workers.slots if slot.worker is not None and slot.worker.ready]
        try:
            for worker in asked:
                worker.channel.send({"reside": act, "model": model, "number": number})
            async with asyncio.timeout(SECONDS):
                while any(worker.ready and worker not in told for worker in asked):
                    await asyncio.sleep(0.005)
            status, why = max(told.values(), default=(200, ""))
            return status, {"error": why} if why else {"model": model, "workers": len(told)}
        finally:
            del self._told[number]
