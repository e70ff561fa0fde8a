"""docs/compression.md: its first Python does what is printed below it, and its mistakes are answered as it says."""

import dataclasses
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from loopwright.cli.edge import run
from loopwright.compression.steps import STEPS, step
from tests.integration.docs.page import DOCS, FENCE, Step, steps

TEXT = (DOCS / "compression.md").read_text(encoding="utf-8")
FILES = {found["name"]: found["body"] for found in FENCE.finditer(TEXT) if found["name"]}
TYPED = [
    one for found in FENCE.finditer(TEXT) if found["language"] == "console" for one in steps(found["body"])
]
WRONG = [one for one in TYPED if len(one.printed) == 1 and one.printed[0].startswith("loopwright: ")]
EPOCHS = "range(12)"
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def kinds(line: str) -> str:
    """What is measured, trained or addressed by content differs from run to run."""
    return NUMBER.sub("<number>", re.sub(r"candidates/[0-9a-f]{12}/", "candidates/<key>/", line))


def test_the_python_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert EPOCHS in FILES["digits.py"]
    (tmp_path / "digits.py").write_text(FILES["digits.py"].replace(EPOCHS, "range(3)"))
    (tmp_path / "smaller.py").write_text(FILES["smaller.py"])
    runpy.run_path("smaller.py")
    (shown,) = [one.printed for one in TYPED if one.typed == "python smaller.py"]
    printed = capfd.readouterr().out.splitlines()
    assert [kinds(line) for line in printed] == [kinds(line) for line in shown]
    assert (tmp_path / "small" / "report.md").is_file()


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.typed.partition("compress ")[2])
def test_a_mistake_is_answered_as_it_says(
    wrong: Step, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(wrong.typed)[1:]
    assert run([*words, "--home", str(tmp_path / "home")]) == 2
    assert capsys.readouterr().err.splitlines() == wrong.printed


def test_there_are_three_mistakes_and_every_technique() -> None:
    assert len(WRONG) == 3
    table = TEXT[TEXT.index("## What to expect") : TEXT.index("## A registered version")]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    told = {name for cell in first for name in re.findall(r"`([\w-]+)`", cell)}
    assert told == set(STEPS) - {"given-student"}


def test_the_settings_are_those_that_the_steps_have() -> None:
    table = TEXT[TEXT.index("## Settings of the steps") : TEXT.index("## Limits")]
    told = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, re.MULTILINE))
    assert told == {name: settings(name) for name in STEPS if name != "given-student"}


def settings(name: str) -> str:
    fields = dataclasses.fields(step(name, {}))  # type: ignore[arg-type]  # all steps are dataclasses
    return ", ".join(f"`{one.name}: {written(getattr(step(name, {}), one.name))}`" for one in fields)


def written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if value == "":
        return '""'
    return str(value) if isinstance(value, int | float | str) else "empty"
