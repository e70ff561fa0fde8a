"""The built-in check: one billion parameters brought under 300 MB on this machine, with what it took of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from loopwright.compression.streaming.narrowing import encoded_size, plan
from loopwright.compression.streaming.stages import settings
from loopwright.compression.streaming.transformer import Shape
from loopwright.kernel import errors
from loopwright.kernel.digest import digest_json
from loopwright.kernel.errors import BadInput, LoopwrightError, Unavailable
from loopwright.kernel.files import lock, write_atomic
from loopwright.kernel.progress import Progress, Silent
from loopwright.kernel.sizes import said_size

VERSION = 2
"""Of the files in the folder: another version starts afresh."""
SPARE_DISK = 100_000_000
BARE = 250_000_000
"""Bytes of a process that has loaded numpy, onnx and ONNX Runtime, and no model."""
CANNOT = (
    "The weights are random: nothing here says what a trained model would lose in quality. Magnitude chose among "
    "equals here, and the cosine says how INT8 follows FP32 on this model, not on a trained one.\n"
    "For a model of yours, with rows held out: loopwright compress MODEL --max-loss 1%"
)
_TITLES = {
    "create": "A transformer of random weights", "narrow": "Layers pruned, the rest narrowed",
    "quantize": "INT8, per channel", "measure": "Latency and agreement",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """One process, from its start to its end. `peak_mb`: of its resident memory; `kept`: an interrupted run did it.

    `cpu_seconds`: of all its threads together; far fewer than seconds × threads on a disk, or a machine, that is busy.
    """

    name: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What is promised: bytes on disk, milliseconds of the median call, bytes of memory, minutes."""

    size: int
    latency_ms: float
    memory: int
    minutes: float


@dataclass(frozen=True, slots=True)
class BillionReport:
    """What the check found. Sizes are bytes on disk with external data, times of `tokens` tokens with `threads`.

    `p50`, `p99`: milliseconds of a call of the INT8 model; `plain_*` of the same narrowed model in FP32, in turns with
    it. `cpu_ms`: processor time of a call of the INT8 model, all threads together; `load`: load average of the machine
    then. `cosine`: mean over tokens of INT8 and FP32 states (in numpy) of the narrowed model; `largest`: of their
    differences. `caller_mb`: what the calling process held beside the stages.
    """

    shape: Shape
    kept: Shape
    layers: tuple[int, ...]
    original_size: int
    original_parameters: int
    narrowed_size: int
    size: int
    parameters: int
    tokens: int
    threads: int
    seed: int
    p50: float
    p99: float
    plain_p50: float
    plain_p99: float
    calls: int
    cpu_ms: float
    load: float
    cosine: float
    largest: float
    stages: tuple[Stage, ...]
    caller_mb: float
    limits: Limits

    @property
    def peak_mb(self) -> float:
        """Most memory at one time: of the largest stage and of the caller, added."""
        return max(stage.peak_mb for stage in self.stages) + self.caller_mb

    @property
    def minutes(self) -> float:
        """Of all stages, those of an interrupted run included."""
        return sum(stage.seconds for stage in self.stages) / 60

    @property
    def misses(self) -> dict[str, float]:
        """Limits that were not kept, and by what factor; {}: all were."""
        shares = {
            "size": self.size / self.limits.size, "latency": self.p50 / self.limits.latency_ms,
            "memory": self.peak_mb * 1e6 / self.limits.memory, "minutes": self.minutes / self.limits.minutes,
        }  # fmt: skip
        return {name: share for name, share in shares.items() if share > 1}

    def to_json(self) -> dict[str, Any]:
        """In JSON's own types, with what is derived and what the check cannot show."""
        derived = {
            "peak_mb": self.peak_mb, "minutes": self.minutes, "misses": self.misses, "weights": "random",
            "ok": not self.misses, "not_shown": CANNOT, "ratio": self.original_size / self.size,
        }  # fmt: skip
        return (
            asdict(self)
            | {"layers": list(self.layers), "stages": [asdict(one) for one in self.stages]}
            | derived
        )

    def to_text(self) -> str:
        """A table for people."""
        return "\n".join(
            [*self._model(), "", *self._limits(), "", *self._speed(), "", *self._stages(), "", CANNOT]
        )

    def _model(self) -> list[str]:
        whole = f"INT8 takes {said_size(encoded_size(self.shape, 8))} and INT4 {said_size(encoded_size(self.shape, 4))}"
        target, left = said_size(self.limits.size), len(self.layers)
        reached = encoded_size(self.shape, 8) <= self.limits.size
        return [
            f"A transformer of {self.original_parameters / 1e6:,.1f} M parameters, RANDOM weights, "
            f"{said_size(self.original_size)} in FP32: {self.shape}",
            f"  as it is, {whole}: {f'within {target}' if reached else f'parameters have to go for {target} in INT8'}",
            f"  narrowed to {self.parameters / 1e6:,.1f} M, {said_size(self.narrowed_size)} in FP32: {self.kept}",
            f"  layers that stay, by magnitude ({left} of {self.shape.layers}): {', '.join(map(str, self.layers))}",
            f"  INT8 per channel: {said_size(self.size)}, {self.original_size / self.size:.1f} × smaller than at first",
        ]

    def _limits(self) -> list[str]:
        limits = self.limits
        rows = (
            ("size", "size on disk", f"{self.size / 1e6:,.2f} MB", f"{limits.size / 1e6:,.2f} MB"),
            ("latency", f"latency, p50, {self.tokens} tokens", f"{self.p50:.1f} ms", f"{limits.latency_ms:.0f} ms"),
            ("memory", "peak memory", said_size(self.peak_mb * 1e6), said_size(limits.memory)),
            ("minutes", "time in all", f"{self.minutes:.1f} min", f"{limits.minutes:.0f} min"),
        )  # fmt: skip
        return [
            f"{'':34}{'measured':>12}{'limit':>12}",
            *(
                f"{name:34}{value:>12}{limit:>12}{'   MISSED' if key in self.misses else ''}"
                for key, name, value, limit in rows
            ),
        ]

    def _speed(self) -> list[str]:
        cores = os.cpu_count() or 1
        busy = ", so what is measured is a busy machine" if self.load > cores + 0.5 else ""
        return [
            f"{self.threads} threads, batch 1, {self.calls} calls in turns: p99 {self.p99:.1f} ms; the narrowed model "
            f"in FP32 p50 {self.plain_p50:.1f} ms, p99 {self.plain_p99:.1f} ms "
            f"({self.plain_p50 / self.p50:.1f} × slower)",
            f"a call in INT8 takes {self.cpu_ms:.1f} ms of processor time, on {self.threads} idle cores about "
            f"{self.cpu_ms / self.threads:.1f} ms; the load average was {self.load:.1f} on {cores}{busy}",
            f"INT8 against FP32 (numpy) of the narrowed model: cosine {self.cosine:.5f}, largest difference "
            f"{self.largest:.3g}",
        ]

    def _stages(self) -> list[str]:
        return [
            f"{'stage, a process each':34}{'seconds':>12}{'of CPU':>12}{'peak':>12}",
            *(
                f"{_TITLES[one.name]:34}{one.seconds:12.1f}{one.cpu_seconds:12.1f}{said_size(one.peak_mb * 1e6):>12}"
                f"{'   done by an earlier run' if one.kept else ''}"
                for one in self.stages
            ),
            "Peaks are resident memory: interpreter, libraries and mapped files too, not the system's file cache.",
            f"The calling process held {self.caller_mb:.0f} MB beside, which the peak above contains.",
        ]


def run_check(
    folder: Path,
    *,
    parameters: int = 10**9,
    target: int = 300_000_000,
    latency_ms: float = 50.0,
    memory: int = 4_000_000_000,
    minutes: float = 5.0,
    tokens: int = 32,
    threads: int | None = None,
    seed: int = 7,
    keep: bool = False,
    watch: Progress | None = None,
) -> BillionReport:
    """Make a transformer of at least `parameters` random weights in `folder`, bring it under `target` bytes, measure.

    Pruned (layers) and narrowed (hidden, heads, FFN) by magnitude until INT8 is small enough, quantized, then asked
    with `tokens` tokens, batch 1, `threads` (None: 2). Each stage is a process of its own. An interrupted run goes on
    at the stage it had come to; another one on the same folder waits for it. Unless `keep`, files are removed at the
    end, the largest as soon as the next stage is done, and so is what interrupted checks of other settings left. Limits
    that are missed are in the report, they raise nothing.

    Raises BadInput for settings out of range or a `target` that no shape reaches; Unavailable, before anything is
    written, where disk or memory is too small, and when a stage is ended from outside.
    """
    if not 1 <= tokens <= 512:
        raise BadInput("tokens of one call", where="check", got=tokens, wanted="1 to 512")
    cores = os.cpu_count() or 1
    threads = min(2, cores) if threads is None else threads
    if not 1 <= threads <= cores:
        raise BadInput(
            "threads", where="check", got=threads, wanted=f"1 to {cores}, the cores of this machine"
        )
    limits = Limits(target, latency_ms, memory, minutes)
    shape = Shape.about(parameters)
    kept = plan(shape, target)
    key = digest_json([VERSION, asdict(shape), asdict(kept), seed])[:12]
    work = folder / f"billion-{key}"
    with lock(folder / "billion.lock"):
        if not keep:
            _drop_others(folder, work)
        run = _Run(work, shape, kept, seed, tokens, threads, watch or Silent())
        _refuse_small(run)
        stages, found = [], {}
        for name, spent in (("create", ()), ("narrow", ("original",)), ("quantize", ()), ("measure", ())):
            stage, found[name] = run.stage(name)
            stages.append(stage)
            if not keep:
                run.drop(spent)
        if not keep:
            shutil.rmtree(work)
    made, cut, small, asked = (found[name] for name in ("create", "narrow", "quantize", "measure"))
    return BillionReport(
        shape=shape, kept=kept, layers=tuple(cut["layers"]), original_size=made["size"],
        original_parameters=made["parameters"], narrowed_size=cut["size"], size=small["size"],
        parameters=cut["parameters"], tokens=tokens, threads=threads, seed=seed, p50=asked["p50"], p99=asked["p99"],
        plain_p50=asked["plain_p50"], plain_p99=asked["plain_p99"], calls=asked["calls"], cpu_ms=asked["cpu"],
        load=asked["load"], cosine=asked["cosine"], largest=asked["largest"], stages=tuple(stages),
        caller_mb=psutil.Process().memory_info().rss / 1e6, limits=limits,
    )  # fmt: skip


class _Run:
    """The stages in their folder. What is done has its figures beside it, written last."""

    def __init__(
        self, work: Path, shape: Shape, kept: Shape, seed: int, tokens: int, threads: int, watch: Progress
    ) -> None:
        self.work, self.shape, self.kept, self._watch = work, shape, kept, watch
        self._threads = threads
        self._said = settings(
            shape, kept, seed=seed, tokens=tokens, threads=threads,
            **{name: str(work / f"{name}.onnx") for name in ("original", "narrowed", "quantized")},
        )  # fmt: skip

    def done(self, name: str) -> bool:
        return (self.work / f"{name}.json").is_file()

    def stage(self, name: str) -> tuple[Stage, dict[str, Any]]:
        """Run it, unless an earlier run did; measuring is always done."""
        note = self.work / f"{name}.json"
        self._watch.step(_TITLES[name])
        kept = name != "measure" and self.done(name)
        if kept:
            told = json.loads(note.read_text())
        else:
            began = time.monotonic()
            told = self._child(name)
            told["seconds"] = time.monotonic() - began
            write_atomic(note, json.dumps(told).encode())
        self._watch.done(f"{_summary(told['found'])}, {said_size(told['peak_mb'] * 1e6)} at most")
        return Stage(name, told["seconds"], told["cpu_seconds"], told["peak_mb"], kept), told["found"]

    def drop(self, names: tuple[str, ...]) -> None:
        """Remove models that no later stage reads."""
        for name in names:
            for file in (self.work / f"{name}.onnx", self.work / f"{name}.onnx.data"):
                file.unlink(missing_ok=True)

    def _child(self, name: str) -> dict[str, Any]:
        self.work.mkdir(parents=True, exist_ok=True)
        many = {f"{library}_NUM_THREADS": str(self._threads) for library in ("OMP", "OPENBLAS", "MKL")}
        child = subprocess.Popen(
            [sys.executable, "-m", "loopwright.compression.streaming.stages"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | many,
        )  # fmt: skip
        assert child.stdin and child.stdout and child.stderr
        last: deque[str] = deque(maxlen=5)
        errors = Thread(target=last.extend, args=(child.stderr,), daemon=True)
        errors.start()
        told: dict[str, Any] = {}
        try:
            child.stdin.write(json.dumps({"stage": name, **self._said}) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                told = json.loads(line)
                if "fraction" in told:
                    self._watch.update(told["fraction"], told["note"])
                elif "note_kept" in told:
                    self._watch.note(told["note_kept"])
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            errors.join()
            for stream in (child.stdin, child.stdout, child.stderr):
                stream.close()
        if "found" in told and code == 0:
            return told
        raise _failure(name, code, told, " ".join("".join(last).split()))


def _drop_others(folder: Path, own: Path) -> None:
    """Remove what interrupted checks of other settings left."""
    for other in folder.iterdir():
        if other != own and re.fullmatch(r"billion-[0-9a-f]{12}", other.name):
            shutil.rmtree(other)


def _refuse_small(run: _Run) -> None:
    """Raise Unavailable when what is still to be done does not fit the disk, or memory."""
    whole, small = 4 * run.shape.parameters, 4 * run.kept.parameters
    final = encoded_size(run.kept, 8)
    sizes = {"create": whole, "narrow": small, "quantize": final}
    needed = SPARE_DISK + sum(size for name, size in sizes.items() if not run.done(name))
    there = next(path for path in (run.work, *run.work.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise Unavailable(
            "too little room on the disk", where=str(run.work), got=f"{said_size(free)} free",
            wanted=f"{said_size(needed)}", next="Name a folder on a larger disk, or check fewer parameters.",
        )  # fmt: skip
    # FP32 and INT8 of the narrowed model as ONNX Runtime holds them: mapped files, and copies its kernels ordered.
    asked = BARE + 2 * (small + final)
    free = psutil.virtual_memory().available
    if free < asked:
        raise Unavailable(
            "too little free memory", where="check", got=said_size(free), wanted=said_size(asked),
            next="End what else is running, or check fewer parameters.",
        )  # fmt: skip


def _failure(name: str, code: int, told: Mapping[str, Any], said: str) -> LoopwrightError:
    if "error" in told:
        kind = getattr(errors, told["error"], Unavailable)
        fields = {field: told[field] for field in ("where", "wanted", "next", "got")}
        found: LoopwrightError = kind(told["what"], **fields)
        return found
    why = f"signal {-code}" if code < 0 else f"exit {code}"
    return Unavailable(
        f"the stage `{name}` was ended", where="check", got=f"{why}; {said[-300:]}" if said else why,
        wanted="that it finishes",
        next="Signal 9 mostly means too little memory. Ask again: what is done is not done again.",
    )  # fmt: skip


def _summary(found: Mapping[str, Any]) -> str:
    if "p50" in found:
        return f"{found['p50']:.1f} ms"
    return f"{found['parameters'] / 1e6:,.1f} M numbers, {said_size(found['size'])}"
