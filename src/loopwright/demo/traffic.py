"""History as live traffic: what each request would have brought at its moment, and labels when they became known."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from loopwright.control.client import HttpClient
from loopwright.demo.replay import Answered, requests, send
from loopwright.features.frame import Frame
from loopwright.kernel.clock import from_us, iso, to_us
from loopwright.kernel.errors import Unavailable

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

LABELS_PER_CALL = 20_000
DAY = timedelta(days=1)
DAY_US = DAY // timedelta(microseconds=1)


@dataclass(frozen=True)
class Port:
    """Where a model is served."""

    host: str
    port: int

    def admin(self, act: str) -> dict[str, Any]:
        """POST one of the serving supervisor's own acts (`flush`, `refresh`) and return its answer."""
        url = f"http://{self.host}:{self.port}/admin/{act}"
        try:
            with _open(urllib.request.Request(url, b"", method="POST"), timeout=60) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            raise Unavailable(f"serving could not {act}", where=url, got=error.read(500).decode()) from None


class Traffic:
    """Replays `frame` (event-time order, all of it) against one model; remembers how far it got.

    A label is sent once its flight has landed, never before. `admin` may run the controllers at once.
    """

    def __init__(
        self, frame: Frame, *, model: str, port: Port, control: HttpClient, admin: HttpClient, start: datetime
    ) -> None:
        self.frame = frame
        self.model = model
        self.port = port
        self.control = control
        self.now = start
        self._times = frame.event_times()
        self._label_order = np.argsort(frame.label_times(), kind="stable")
        self._label_times = frame.label_times()[self._label_order]
        self.answered = Answered()
        self.labels_sent = 0
        self.admin = admin

    def advance(self, span: timedelta, *, rows_per_request: int = 1) -> Answered:
        """Replay the requests of the next `span` of event time, deliver the labels due, and let the loop think."""
        until = self.now + span
        answered = self.send_until(until, rows_per_request=rows_per_request)
        self.settle()
        return answered

    def send_until(self, until: datetime, *, rows_per_request: int = 1) -> Answered:
        """Send the requests with event time before `until`, in order, and nothing else."""
        midnight = from_us(to_us(self.now) // DAY_US * DAY_US) + DAY
        if rows_per_request > 1 and until > midnight:
            # Many rows on many connections arrive hours out of order; windows end at midnight, and by then what
            # belongs to them is answered.
            answered = Answered()
            while self.now < until:
                answered += self.send_until(min(midnight, until), rows_per_request=rows_per_request)
                midnight += DAY
            return answered
        first, last = np.searchsorted(self._times, [_us(self.now), _us(until)])
        previous, self.now = self.now, until
        if first == last:
            return Answered()
        part = self.frame.take(np.arange(first, last))
        times = [from_us(int(t)) for t in part.event_times().astype(np.int64)]
        bodies = requests(
            part.inputs(),
            ids=list(part.ids()),
            units=[str(unit) for unit in part.units()],
            event_times=times,
            rows_per_request=rows_per_request,
        )
        answered = send(self.port.host, self.port.port, self.model, bodies)
        self.answered += answered
        self._labels_due(previous, until)
        return answered

    def settle(self) -> None:
        """Ship what serving logged, run the controllers once, and have serving take the newest routes."""
        self.port.admin("flush")
        self.admin.request("POST", "/tick", b"{}")
        self.port.admin("refresh")

    def _labels_due(self, since: datetime, until: datetime) -> None:
        first, last = np.searchsorted(self._label_times, [_us(since), _us(until)])
        positions = self._label_order[first:last]
        labels = self.frame.labels()[positions]
        known = ~np.isnan(labels)
        ids, times = self.frame.ids()[positions], self._label_times[first:last]
        chosen = np.flatnonzero(known)
        for start in range(0, len(chosen), LABELS_PER_CALL):
            part = chosen[start : start + LABELS_PER_CALL]
            self.control.call(
                "monitoring.add_labels",
                model=self.model,
                labels=[
                    {"id": str(name), "label": label, "available_at": iso(from_us(moment))}
                    for name, label, moment in zip(
                        ids[part], labels[part].tolist(), times[part].astype(np.int64).tolist(), strict=True
                    )
                ],
            )
        self.labels_sent += len(chosen)


def _us(moment: datetime) -> np.datetime64:
    return np.datetime64(to_us(moment), "us")
