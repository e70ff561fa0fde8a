from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopwright.data.contract import Contract
from loopwright.data.lake import Lake
from loopwright.data.source import Source, resolve
from loopwright.ledger.engine import Ledger


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.migrate()
    yield Lake(tmp_path / "lake", ledger)
    ledger.dispose()


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Source]:
    """Write a CSV and return it as a source; equal texts are equal sources."""

    def write(text: str) -> Source:
        path = tmp_path / "source.csv"
        path.write_text(text)
        return resolve(str(path), Path())

    return write


def contract(*columns: str, quality: str = "", custom: str = "") -> Contract:
    text = "apiVersion: v3.1.0\nkind: DataContract\nid: t\nschema:\n  - name: t\n    properties:\n"
    text += "".join(f"      - {column}\n" for column in columns)
    text += f"    quality: [{quality}]\n    customProperties: [{custom}]\n"
    return Contract.parse(text, "t.odcs.yaml")
