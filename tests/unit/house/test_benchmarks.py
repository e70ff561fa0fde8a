"""docs/benchmarks.md has every benchmark that there is, by a command that starts it, and none that there is not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
EVERY = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
COMMAND = re.compile(r"python benchmarks/(\w+)\.py((?: --[\w-]+(?: [\w,]+)?)*)")
SHOWN = sorted({(found[1], found[2].replace(",", "")) for found in COMMAND.finditer(PAGE)})


def test_every_benchmark_is_on_the_page_and_every_one_there_exists() -> None:
    assert {name for name, _ in SHOWN} == set(EVERY)


@pytest.mark.parametrize(("name", "options"), SHOWN)
def test_a_command_on_the_page_has_options_that_its_benchmark_takes(name: str, options: str) -> None:
    source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    taken = set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', source))
    assert {word for word in options.split() if word.startswith("--")} <= taken


def test_the_order_of_all_names_benchmarks_that_exist() -> None:
    told = "from benchmarks.__main__ import ORDER; print(*ORDER)"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == EVERY
