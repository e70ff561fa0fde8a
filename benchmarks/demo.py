"""How long the whole loop takes on the flights, beside its limit, and how fast the replay was through two workers.

Run: .venv/bin/python benchmarks/demo.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_SECONDS = 180
LIMIT_RATE = 1500


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="loopwright-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        began = time.monotonic()
        command = [sys.executable, "-m", "loopwright", "demo", "flights", "--keep", str(home)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False)
        seconds = time.monotonic() - began
        if done.returncode:
            print(f"the demo ended with exit code {done.returncode}")
            return done.returncode
        figures = json.loads((home / "demo.json").read_text())
    april = figures["april"]
    print(f"{'':44}{'measured':>12}{'limit':>12}")
    print(f"{'loopwright demo flights, seconds':44}{seconds:>12.0f}{LIMIT_SECONDS:>12}")
    print(
        f"{'April, one request per flight, requests/s':44}{april['requests_per_second']:>12,.0f}{LIMIT_RATE:>12,}"
    )
    print(f"{'control plane ready, seconds':44}{figures['processes']['control_ready_seconds']:>12.1f}{6:>12}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
