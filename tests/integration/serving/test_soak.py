"""The short form of the ten-minute soak: the same program, a quarter of a minute."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_under_steady_load_no_request_fails_and_every_answer_is_in_the_log() -> None:
    """A quarter of a minute shows a leak of megabytes, not one of kilobytes: memory settles for longer than that."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--minutes", "0.2", "--allow-mb", "8"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answered, refused = (
        int(found.replace(",", ""))
        for found in re.findall(r"answered ([\d,]+); failed 0; wrong requests refused ([\d,]+)", done.stdout)[
            0
        ]
    )
    assert answered > 500
    assert refused > 5
