"""How long an answer takes: exported graphs in ONNX Runtime, asked as production asks, in turns with each other."""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from loopwright.compression.artefact import Artefact
from loopwright.compression.candidate import Latency
from loopwright.compression.session import answer_name, open_session, run
from loopwright.compression.subject import Array, Feeds, Production, check_feeds
from loopwright.kernel.errors import BadInput

ROUNDS = 5
CALLS = 120
SECONDS = 30.0
LEAST_CALLS = 10
WARM_CALLS = 5
INPUTS = 32
MOST_ROUNDS = 3
QUIET = 0.005
"""Share of calls that may be disturbed in a round: of more, the 99th percentile is theirs."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds of one call. `p50s` and `p99s` hold one value per round, `p50` and `p99` their medians.

    `calls` is of all rounds together; a round of fewer than 100 has its slowest call as p99. `spread`: (largest -
    least) / median of the rounds' p50: how far a second measurement may be from this one. `disturbed`: for what
    share of the calls the processor was given to another process meanwhile; above 0.01 the p99 is that of the load.
    """

    p50: float
    p99: float
    spread: float
    calls: int
    rounds: int
    p50s: tuple[float, ...]
    p99s: tuple[float, ...]
    disturbed: float


def measure(
    artefacts: Sequence[Artefact], feeds: Feeds, production: Production | None = None, *, rounds: int = ROUNDS,
    calls: int = CALLS, seconds: float = SECONDS, seed: int = 7,
) -> list[Timed]:  # fmt: skip
    """Time each of `artefacts` with `production`'s batch, threads and lengths, on rows of `feeds`; in their order.

    A round asks each of them `calls` times, warm, one after the other, beginning with another one each time, so that
    what else the machine does meets all alike. Where all this would take more than `seconds`, calls become fewer, 10 at
    the least. Rounds in which other processes took the processor are repeated, up to three times as many in all, and
    the least disturbed are used. Python's part of a call is included and equal for all. Raises BadInput.
    """
    if rounds < 1 or calls < 1 or not artefacts:
        raise BadInput("nothing to measure", where="latency", got=(len(artefacts), rounds, calls))
    asked = production or Production()
    timers = [_Timer(one, _questions(one, feeds, asked, seed), asked.threads) for one in artefacts]
    began = time.monotonic()
    slowest = sum(timer.warm() for timer in timers)
    count = max(min(calls, LEAST_CALLS), min(calls, int(seconds / max(rounds * slowest, 1e-9))))
    done: list[_Round] = []
    while len(done) < rounds or (
        len(done) < rounds * MOST_ROUNDS
        and sum(one.quiet for one in done) < rounds
        and time.monotonic() - began < seconds
    ):
        done.append(_round(timers, count, len(done)))
    # Chosen by what else ran meanwhile, never by the times themselves.
    used = sorted(sorted(range(len(done)), key=lambda turn: done[turn].disturbed)[:rounds])
    disturbed = float(np.mean([done[turn].disturbed for turn in used]))
    return [_summary([done[turn].times[place] for turn in used], disturbed) for place in range(len(timers))]


def compare(
    original: Artefact, artefact: Artefact, feeds: Feeds, production: Production | None = None, *,
    rounds: int = ROUNDS, calls: int = CALLS, seconds: float = SECONDS, seed: int = 7,
) -> Latency:  # fmt: skip
    """Both timed in turns, see `measure`; the ratio is the median of the rounds' own."""
    asked = production or Production()
    old, new = measure(
        [original, artefact], feeds, asked, rounds=rounds, calls=calls, seconds=seconds, seed=seed
    )
    ratios = np.divide(old.p50s, new.p50s)
    return Latency(
        p50=new.p50, p99=new.p99, original_p50=old.p50, original_p99=old.p99, ratio=float(np.median(ratios)),
        batch=asked.batch, threads=asked.threads, calls=new.calls, rounds=rounds, spread=max(old.spread, new.spread),
        ratio_low=float(ratios.min()), ratio_high=float(ratios.max()), disturbed=new.disturbed,
    )  # fmt: skip


def shaped(artefact: Artefact, feeds: Feeds, production: Production) -> dict[str, Array]:
    """`feeds` with the axes that `production.lengths` names cut to that length, or repeated until they have it."""
    check_feeds(artefact.ports, feeds, artefact.path.name)
    found = dict(feeds)
    for port in artefact.ports:
        for axis, name in enumerate(port.shape or ()):
            if axis and isinstance(name, str) and name in production.lengths:
                length = production.lengths[name]
                places = np.arange(length) % found[port.name].shape[axis]
                found[port.name] = np.take(found[port.name], places, axis)
    return found


@dataclass(frozen=True, slots=True)
class _Round:
    """Milliseconds of each graph's calls, and for what share of the calls the processor was taken away."""

    times: list[Array]
    disturbed: float

    @property
    def quiet(self) -> bool:
        return self.disturbed < QUIET


def _round(timers: Sequence["_Timer"], calls: int, turn: int) -> _Round:
    times: dict[int, Array] = {}
    before = _taken_away()
    for step in range(len(timers)):
        place = (turn + step) % len(timers)
        times[place] = timers[place].time(calls)
    share = min(1.0, (_taken_away() - before) / (calls * len(timers)))
    return _Round([times[place] for place in range(len(timers))], share)


def _taken_away() -> int:
    """How often the kernel has given this process's processor to another."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class _Timer:
    """One graph with the questions it is asked, in turn."""

    def __init__(self, artefact: Artefact, questions: list[dict[str, Array]], threads: int) -> None:
        self._session: ort.InferenceSession = open_session(artefact, threads)
        self._output = answer_name(self._session, artefact.path.name)
        self._questions = questions
        self._where = artefact.path.name
        self._next = 0

    def warm(self) -> float:
        """Seconds of a warm call; raises BadInput when the graph cannot answer."""
        for question in self._questions[:WARM_CALLS]:
            run(self._session, self._output, question, self._where)
        return float(np.median(self._calls(WARM_CALLS)))

    def time(self, calls: int) -> Array:
        """Milliseconds of each of `calls` calls, after some that bring the weights back into the caches."""
        self._calls(WARM_CALLS)
        return self._calls(calls) * 1e3

    def _calls(self, count: int) -> Array:
        times = np.empty(count)
        wanted, ask, clock = [self._output], self._session.run, time.perf_counter
        for at in range(count):
            question = self._questions[self._next]
            self._next = (self._next + 1) % len(self._questions)
            began = clock()
            try:
                ask(wanted, question)
            except Exception:  # asked again, for the error that says what it was asked
                run(self._session, self._output, question, self._where)
                raise
            times[at] = clock() - began
        return times


def _questions(artefact: Artefact, feeds: Feeds, production: Production, seed: int) -> list[dict[str, Array]]:
    """Up to 32 calls' inputs of different rows: one row over and over would teach the processor its branches."""
    ready = shaped(artefact, feeds, production)
    total = len(next(iter(ready.values())))
    if not total:
        raise BadInput("no rows to ask with", where="latency", wanted="at least one")
    fixed = [port.shape[0] for port in artefact.ports if port.shape and isinstance(port.shape[0], int)]
    if any(size != production.batch for size in fixed):
        raise BadInput(
            "the graph takes another number of rows than production asks with", where=artefact.path.name,
            got=f"{fixed[0]} rows", wanted=f"{production.batch}", next="Export it with rows free in size.",
        )  # fmt: skip
    random: Any = np.random.default_rng(seed)
    made = []
    for _ in range(min(INPUTS, max(1, total))):
        chosen = random.choice(total, production.batch, replace=production.batch > total)
        made.append({name: np.ascontiguousarray(values[chosen]) for name, values in ready.items()})
    return made


def _summary(rounds: list[Array], disturbed: float) -> Timed:
    halves = [float(np.quantile(one, 0.5)) for one in rounds]
    tails = [float(np.quantile(one, 0.99, method="higher")) for one in rounds]
    middle = float(np.median(halves))
    return Timed(
        middle,
        float(np.median(tails)),
        (max(halves) - min(halves)) / middle,
        sum(len(one) for one in rounds),
        len(rounds),
        tuple(halves),
        tuple(tails),
        disturbed,
    )
