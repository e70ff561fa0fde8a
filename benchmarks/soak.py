"""One server at 70 % of its peak for ten minutes, with clients that err: memory stays flat and the log is complete.

First the peak is found, then the server is driven at 70 % of it. Once a second its memory is read; at the end every
answer that was acknowledged must be in the log that the control side received, exactly once, and no request may have
failed that was not meant to. Memory counts as flat when the line through the second half rises by less than 2 % an hour
of that half's level, or by less than 1 MB in all.

Run: .venv/bin/python benchmarks/soak.py [--minutes 10] [--share 0.7]
"""

import argparse
import asyncio
import multiprocessing
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import uvloop
from serving import FEATURES, Control, Load, cpu, drive, gradient_boosting, http_request, start_ours

FLAT_SHARE, FLAT_MB = 0.02, 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the peak")
    parser.add_argument("--allow-mb", type=float, default=FLAT_MB, help="rise of memory that counts as none")
    parser.add_argument("--peak-seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        control = Control(root, gradient_boosting())
        ours, port = start_ours(root, control.port)
        try:
            return soak(psutil.Process(ours.pid), port, control, options)
        finally:
            ours.send_signal(signal.SIGTERM)
            ours.wait(60)


def soak(supervisor: psutil.Process, port: int, control: Control, options: argparse.Namespace) -> int:
    seconds: float = 60 * options.minutes
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        count, took, latencies = pool.apply(drive, (port, options.peak_seconds, 16))
        peak = Load(count, took, latencies)
        rate = options.share * peak.rate
        print(f"peak {peak.rate:,.0f} requests a second; {seconds / 60:g} minutes at {rate:,.0f}", flush=True)
        memory: list[tuple[float, float]] = []
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(supervisor, memory, stop), daemon=True)
        watcher.start()
        before, began = sum(map(cpu, pids(supervisor))), time.monotonic()
        result = pool.apply(paced, (port, seconds, rate))
        spent, took = sum(map(cpu, pids(supervisor))) - before, time.monotonic() - began
        stop.set()
        watcher.join()
    flush(port)
    acknowledged = count + result["answered"]
    logged = control.events
    rise, level = slope(memory)
    flat = rise < max(FLAT_SHARE * level * took / 2 / 3600, options.allow_mb)
    p50, p99, worst = (1000 * float(np.quantile(result["latencies"], q)) for q in (0.5, 0.99, 1.0))
    print(
        f"answered {result['answered']:,}; failed {result['failed']}; wrong requests refused {result['refused']:,}"
    )
    print(
        f"latency p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {worst:.0f} ms; CPU {spent / took:.0%} of a core"
    )
    print(
        f"memory {memory[0][1]:.1f} MB at first, {memory[-1][1]:.1f} MB at last; second half rises by {rise:+.2f} MB"
    )
    print(f"acknowledged {acknowledged:,}, logged and received {logged:,}")
    wrong = [
        *(["requests failed"] if result["failed"] else []), *(["memory grows"] if not flat else []),
        *(["the log is not complete"] if logged != acknowledged else []),
    ]  # fmt: skip
    print("; ".join(wrong) or "flat memory, no error, the log complete")
    return int(bool(wrong))


def slope(memory: list[tuple[float, float]]) -> tuple[float, float]:
    """How many MB the line through the second half rises, and that half's level."""
    half = np.array(memory[len(memory) // 2 :])
    if len(half) < 2:
        return 0.0, float(memory[-1][1])
    gradient, _ = np.polyfit(half[:, 0], half[:, 1], 1)
    return float(gradient * (half[-1, 0] - half[0, 0])), float(half[:, 1].mean())


def pids(supervisor: psutil.Process) -> list[int]:
    return [supervisor.pid, *(child.pid for child in supervisor.children(recursive=True))]


def watch(supervisor: psutil.Process, memory: list[tuple[float, float]], stop: threading.Event) -> None:
    while not stop.wait(1.0):
        total = sum(psutil.Process(pid).memory_info().rss for pid in pids(supervisor)) / 1e6
        memory.append((time.monotonic(), total))


def flush(port: int) -> None:
    import httpx

    httpx.post(f"http://127.0.0.1:{port}/admin/flush", timeout=60)


# The load, in a process of its own.


def paced(port: int, seconds: float, rate: float) -> dict[str, object]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_paced(port, seconds, rate))


async def _paced(port: int, seconds: float, rate: float, connections: int = 32) -> dict[str, object]:
    """Each connection sends at its own share of the rate; every hundredth request is one the server must refuse."""
    rng = np.random.default_rng(3)
    good = [http_request(rng.normal(size=FEATURES)) for _ in range(200)]
    wrong = http_request(rng.normal(size=FEATURES)).replace(b'"f3"', b'"f?"')
    told = {"answered": 0, "failed": 0, "refused": 0}
    latencies: list[float] = []
    until = time.monotonic() + seconds

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        pause, due = connections / rate, time.monotonic() + number / rate
        sent = number
        while (now := time.monotonic()) < until:
            if now < due:
                await asyncio.sleep(due - now)
            due = max(due + pause, time.monotonic() - 1.0)
            sent += 1
            is_wrong = sent % 100 == 0
            began = time.perf_counter()
            writer.write(wrong if is_wrong else good[sent % len(good)])
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                told["failed"] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            status = int(head[9:12])
            if is_wrong:
                told["refused" if status == 422 else "failed"] += 1
            elif status == 200:
                told["answered"] += 1
                if sent % 7 == 0:
                    latencies.append(time.perf_counter() - began)
            else:
                told["failed"] += 1
        writer.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    return {**told, "latencies": latencies}


if __name__ == "__main__":
    sys.exit(main())
