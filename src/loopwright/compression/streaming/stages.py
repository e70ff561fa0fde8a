"""The stages of the check, each a process of its own so that its memory can be told: settings in, lines of JSON out.

Started as `python -m loopwright.compression.streaming.stages` by `check`, never by hand.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loopwright.compression.artefact import Artefact
from loopwright.compression.peak import Peak
from loopwright.compression.streaming.narrowing import narrow
from loopwright.compression.streaming.quantizing import quantize_streamed
from loopwright.compression.streaming.transformer import Shape, forward, write_random
from loopwright.compression.streaming.weights import Weights
from loopwright.compression.subject import Production
from loopwright.kernel.errors import LoopwrightError
from loopwright.kernel.progress import Progress, Silent

EVERY = 0.2
ROWS = 4
"""Different inputs that latency and agreement are measured with."""
ROUNDS, CALLS, SECONDS = 3, 40, 15.0


class Lines(Silent):
    """Progress as lines for the parent, five a second at most; ends the process when nobody reads them."""

    def __init__(self) -> None:
        self._last = 0.0

    def update(self, fraction: float, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            say({"fraction": fraction, "note": note})

    def note(self, text: str) -> None:
        say({"note_kept": text})


def say(what: Mapping[str, Any]) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def create(said: Mapping[str, Any], watch: Progress) -> dict[str, Any]:
    """The model with random weights."""
    shape = Shape(**said["shape"])
    write_random(shape, Path(said["original"]), said["seed"], watch, durable=False)
    return _facts(Artefact.open(Path(said["original"]), numbers=False))


def narrowed(said: Mapping[str, Any], watch: Progress) -> dict[str, Any]:
    """The model without its lightest layers, heads, units and dimensions, still FP32."""
    shape, keep = Shape(**said["shape"]), Shape(**said["keep"])
    made, kept = narrow(
        Path(said["original"]), Path(said["narrowed"]), shape, keep, durable=False, watch=watch
    )
    return _facts(made) | {"layers": kept.layers.tolist(), "energy": kept.energy}


def quantized(said: Mapping[str, Any], watch: Progress) -> dict[str, Any]:
    """The narrowed model in INT8."""
    return _facts(quantize_streamed(Path(said["narrowed"]), Path(said["quantized"]), watch=watch))


def measured(said: Mapping[str, Any], watch: Progress) -> dict[str, Any]:
    """Latency of the narrowed model in FP32 and INT8, in turns, and how far their answers are apart."""
    from loopwright.compression.latency import measure  # ONNX Runtime, which the other stages do without
    from loopwright.compression.session import answer_name, open_session, run

    small, large = (Artefact.open(Path(said[name]), numbers=False) for name in ("quantized", "narrowed"))
    random = np.random.default_rng(said["seed"])
    ids = random.integers(0, said["shape"]["vocabulary"], (ROWS, said["tokens"]), dtype=np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    watch.update(0.1, "in FP32, in numpy, matrix by matrix")
    wanted = forward(Weights.open(large.path), ids, feeds["attention_mask"], said["shape"]["head"])
    watch.update(0.3, "in INT8, in ONNX Runtime")
    session = open_session(small, said["threads"])
    answers = run(session, answer_name(session, small.path.name), feeds, small.path.name)
    cpu = _cpu_of_a_call(session, {name: values[:1] for name, values in feeds.items()})
    load = os.getloadavg()[0]
    del session
    watch.update(0.5, "latency, in turns")
    production = Production(batch=1, threads=said["threads"])
    own, plain = measure(
        [small, large], feeds, production, rounds=ROUNDS, calls=CALLS, seconds=SECONDS, seed=said["seed"]
    )
    lengths = np.linalg.norm(answers, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return {
        "p50": own.p50, "p99": own.p99, "plain_p50": plain.p50, "plain_p99": plain.p99, "calls": own.calls,
        "ratio": plain.p50 / own.p50, "cosine": float(((answers * wanted).sum(-1) / lengths).mean()),
        "largest": float(np.abs(answers - wanted).max()), "cpu": cpu, "load": load,
    }  # fmt: skip


def _cpu_of_a_call(session: Any, feeds: Mapping[str, Any], calls: int = 10) -> float:
    """Milliseconds of processor time, all threads together: what else the machine does adds little to it."""
    took = []
    for _ in range(calls):
        began = time.process_time()
        session.run(None, feeds)
        took.append(time.process_time() - began)
    return float(np.median(took)) * 1e3


STAGES: Mapping[str, Callable[[Mapping[str, Any], Progress], dict[str, Any]]] = {
    "create": create, "narrow": narrowed, "quantize": quantized, "measure": measured,
}  # fmt: skip


def main() -> int:
    """Read one line of settings, run the stage it names, and say what came out, with the peak of this process."""
    said = json.loads(sys.stdin.readline())
    try:
        with Peak() as peak:
            found = STAGES[said["stage"]](said, Lines())
    except LoopwrightError as error:
        fields = {name: getattr(error, name) for name in ("what", "where", "wanted", "next")}
        say({"error": type(error).__name__, **fields, "got": None if error.got is None else str(error.got)})
        return 1
    say({"found": found, "peak_mb": peak.mb, "cpu_seconds": time.process_time()})
    return 0


def _facts(artefact: Artefact) -> dict[str, Any]:
    return {"size": artefact.size, "parameters": artefact.parameters}


def settings(shape: Shape, keep: Shape, **rest: Any) -> dict[str, Any]:
    """What `main` reads, but for the stage's name."""
    return {"shape": asdict(shape), "keep": asdict(keep), **rest}


if __name__ == "__main__":
    sys.exit(main())
