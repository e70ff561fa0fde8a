"""The command line as a person runs it, but in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from loopwright.cli.edge import run


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Type = Callable[..., Answer]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LOOPWRIGHT_URL", "LOOPWRIGHT_TOKEN", "LOOPWRIGHT_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOOPWRIGHT_HOME", str(tmp_path / "home"))


@pytest.fixture
def loopwright(capsys: pytest.CaptureFixture[str]) -> Type:
    """Call it with the words of a command line."""

    def call(*words: str) -> Answer:
        capsys.readouterr()
        code = run(list(words))
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return call
