"""One billion parameters under 300 MB on this machine, and what streaming saves beside ONNX Runtime's own tool.

First the check of `loopwright compress --check-billion`, with its limits. Then the narrowed FP32 model is quantized by
ours and by `onnxruntime.quantization.quantize_dynamic` (INT8, per channel), each in a process of its own, and both are
asked in turns. With --whole the 4 GB model itself too, where theirs needs some 12 GB of memory.
Run: .venv/bin/python benchmarks/compression_billion.py [--whole]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from loopwright.compression.artefact import Artefact
from loopwright.compression.latency import measure
from loopwright.compression.session import answer_name, open_session, run
from loopwright.compression.streaming.check import BillionReport, run_check
from loopwright.compression.streaming.transformer import forward
from loopwright.compression.streaming.weights import Weights
from loopwright.compression.subject import Feeds, Production
from loopwright.kernel.progress import Silent

BEGIN = """
import json, sys
from pathlib import Path
from loopwright.compression.peak import Peak
source, target = Path(sys.argv[1]), Path(sys.argv[2])
with Peak() as peak:
"""
OURS = """
    from loopwright.compression.streaming.quantizing import quantize_streamed
    quantize_streamed(source, target)
"""
THEIRS = """
    import logging
    from onnxruntime.quantization import QuantType, quantize_dynamic
    logging.disable(logging.WARNING)
    quantize_dynamic(
        source, target, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )
"""
END = """
print(json.dumps(peak.mb))
"""
WHOLE_NEEDS = 13e9


class Steps(Silent):
    def done(self, summary: str) -> None:
        print(f"    {summary}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--target", type=float, default=300e6, help="bytes")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--folder", type=Path, help="on a disk with 8 GB free; the system's temporary one otherwise"
    )
    parser.add_argument("--whole", action="store_true", help="quantize the model as it is, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        report = run_check(
            folder, parameters=int(options.parameters), target=int(options.target), threads=options.threads,
            keep=True, watch=Steps(),
        )  # fmt: skip
        print(report.to_text(), flush=True)
        work = next(path for path in folder.iterdir() if path.is_dir())
        heading(f"the narrowed model, {report.narrowed_size / 1e9:.2f} GB in FP32, to INT8")
        ours = row("loopwright, streamed", work / "narrowed.onnx", work / "ours.onnx", OURS)
        theirs = row("onnxruntime quantize_dynamic", work / "narrowed.onnx", work / "theirs.onnx", THEIRS)
        beside(report, work / "narrowed.onnx", ours, theirs)
        if options.whole:
            whole(report, work)
    return int(bool(report.misses))


def whole(report: BillionReport, work: Path) -> None:
    heading(f"the model as it is, {report.original_size / 1e9:.2f} GB in FP32, to INT8")
    row("loopwright, streamed", work / "original.onnx", work / "whole-ours.onnx", OURS)
    free = psutil.virtual_memory().available
    if free < WHOLE_NEEDS:
        print(
            f"onnxruntime quantize_dynamic: not tried, {free / 1e9:.1f} GB of memory free, it needs some 12 GB"
        )
        return
    row("onnxruntime quantize_dynamic", work / "original.onnx", work / "whole-theirs.onnx", THEIRS)


def heading(what: str) -> None:
    print(f"\n{what:46}{'seconds':>10}{'peak':>12}{'on disk':>12}")


def row(name: str, source: Path, target: Path, code: str) -> Path:
    """Quantize in a process of its own and print what it took."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code + END, str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        print(f"{name:46}failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}", flush=True)
        return target
    peak = json.loads(done.stdout.splitlines()[-1])
    size = Artefact.open(target).size / 1e6
    print(f"{name:46}{seconds:8.1f} s{peak:9,.0f} MB{size:9,.0f} MB", flush=True)
    return target


def beside(report: BillionReport, plain: Path, *models: Path) -> None:
    """Latency in turns, and how near each is to FP32."""
    made = [Artefact.open(path) for path in models if path.is_file()]
    ids = np.random.default_rng(1).integers(0, report.shape.vocabulary, (8, report.tokens), dtype=np.int64)
    feeds: Feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = forward(Weights.open(plain), ids)
    timed = measure(made, feeds, Production(batch=1, threads=report.threads), rounds=5, calls=20)
    print(f"\n{'asked in turns':46}{'p50':>10}{'p99':>12}{'cosine to FP32':>18}")
    for one, times in zip(made, timed, strict=True):
        session = open_session(one, report.threads)
        answers = run(session, answer_name(session, one.path.name), dict(feeds), one.path.name)
        lengths = np.linalg.norm(answers, axis=-1) * np.linalg.norm(wanted, axis=-1)
        cosine = float(((answers * wanted).sum(-1) / lengths).mean())
        print(f"{one.path.stem:46}{times.p50:7.1f} ms{times.p99:9.1f} ms{cosine:18.5f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
