"""models card|sbom|document|documents, as typed."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.testing import tiny_bundle
from loopwright.control.context import open_context
from loopwright.control.identify import LOCAL
from loopwright.registry.mlflow_tables import ensure_mlflow_tables
from loopwright.registry.versions import register_version

from .conftest import Type

SAID = "Planners hold gates and crews with it, an hour before the departure."
CARD = "".join(
    f"## {heading}\n\n{SAID}\n\n" for heading in ("Intended use", "Limitations", "Training data", "Risks")
)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one version of `late`."""
    folder = tmp_path_factory.mktemp("documents")
    ctx = open_context(folder / "home", LOCAL, create=True)
    ensure_mlflow_tables(ctx.ledger)
    digest = BundleDepot(ctx.home.bundles).add(tiny_bundle(folder / "bundle", ctx.key).path)
    with ctx.ledger.write() as conn:
        register_version(
            conn,
            model="late",
            bundle=digest,
            run_id=None,
            snapshot=None,
            author=LOCAL,
            metrics={},
            now=ctx.now,
        )
    ctx.ledger.dispose()
    return folder / "home"


def test_a_card_is_printed_or_written_in_the_format_of_the_ending(
    loopwright: Type, ready: Path, tmp_path: Path
) -> None:
    shown = loopwright("models", "card", "late", "1", "--home", str(ready))
    assert shown.code == 0 and shown.out.startswith("# late 1.0.0\n")
    page = tmp_path / "card.html"
    written = loopwright("models", "card", "late", "1", "-o", str(page), "--home", str(ready))
    assert written.code == 0 and "sha256" in written.out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    document = loopwright("models", "card", "late", "1", "--format", "json", "--home", str(ready))
    assert json.loads(document.out)["identity"]["model"] == "late"


def test_a_bill_of_materials_is_json(loopwright: Type, ready: Path) -> None:
    shown = loopwright("models", "sbom", "late", "1", "--home", str(ready))
    assert json.loads(shown.out)["specVersion"] == "1.6"


def test_documenting_says_what_the_policy_still_misses(loopwright: Type, ready: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text(f"## Risks\n\n{SAID}\n", encoding="utf-8")
    some = loopwright("models", "document", "late", "1", str(tmp_path / "card.md"), "--home", str(ready))
    assert some.code == 1 and "still misses: Intended use, Limitations, Training data" in some.out
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    all_of_it = loopwright("models", "document", "late", "1", str(tmp_path / "card.md"), "--home", str(ready))
    assert all_of_it.code == 0 and "misses" not in all_of_it.out
    none = loopwright("models", "document", "late", "1", str(tmp_path / "nowhere.md"), "--home", str(ready))
    assert none.code == 2


def test_a_table_of_data_is_no_card(loopwright: Type, ready: Path, tmp_path: Path) -> None:
    (tmp_path / "loans.csv").write_text("id,amount\n1,2000\n", encoding="utf-8")
    answer = loopwright("models", "document", "late", "1", str(tmp_path / "loans.csv"), "--home", str(ready))
    assert answer.code == 2 and "loans.csv: no card" in answer.err and "## Intended use" in answer.err


def test_a_card_that_says_less_than_the_one_before_says_what_is_lost(
    loopwright: Type, ready: Path, tmp_path: Path
) -> None:
    words = ("models", "document", "late", "1", str(tmp_path / "card.md"), "--home", str(ready))
    contact = "## Contact\n\ndesk@example.com\n"
    (tmp_path / "card.md").write_text(CARD + contact, encoding="utf-8")
    assert loopwright(*words).code == 0
    (tmp_path / "card.md").write_text(CARD.replace("## Risks", "## Notes"), encoding="utf-8")
    less = loopwright(*words)
    assert less.code == 1 and "NO LONGER filled, and were in the text before: Contact, Risks" in less.out
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    assert loopwright(*words).code == 1  # the policy has all it asks for; what Notes said is gone


def test_an_ending_that_is_no_format_of_a_card_is_told(loopwright: Type, ready: Path, tmp_path: Path) -> None:
    answer = loopwright("models", "card", "late", "1", "-o", str(tmp_path / "x.pdf"), "--home", str(ready))
    assert answer.code == 2 and "got .pdf, wanted .md, .html, .json" in answer.err
    assert not (tmp_path / "x.pdf").exists()


@pytest.mark.parametrize(
    "words",
    ["models card late 1 -o", "models sbom late 1 -o", "models documents late 1 -o", "explain late 1 --id x --svg",
     "lineage late 1 --svg", "lineage late 1 --html", "lineage export -o", "audit export -o",
     "audit report --month 2013-07 -o"],
)  # fmt: skip
def test_nothing_is_written_into_a_folder_that_is_not_there(
    loopwright: Type, ready: Path, tmp_path: Path, words: str
) -> None:
    target = tmp_path / "mistyped" / "out.md"
    answer = loopwright(*words.split(), str(target), "--home", str(ready))
    assert answer.code == 2 and "no such folder" in answer.err and str(target.parent) in answer.err
    assert not target.parent.exists()


def test_all_documents_as_a_folder_that_sha256sum_agrees_with(
    loopwright: Type, ready: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dossier"
    made = loopwright("models", "documents", "late", "1", "-o", str(folder), "--home", str(ready))
    assert made.code == 0 and "index.json" in made.out
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    again = loopwright("models", "documents", "late", "1", "-o", str(folder), "--home", str(ready))
    assert again.code == 1 and "is there already" in again.err


def test_all_documents_as_a_zip(loopwright: Type, ready: Path, tmp_path: Path) -> None:
    packed = tmp_path / "dossier.zip"
    assert loopwright("models", "documents", "late", "1", "-o", str(packed), "--home", str(ready)).code == 0
    with zipfile.ZipFile(packed) as archive:
        assert {"card.html", "SHA256SUMS", "index.json"} <= set(archive.namelist())
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o644}


def test_a_control_plane_cannot_choose_where_a_document_is_written(tmp_path: Path) -> None:
    from loopwright.cli.documents import _write
    from loopwright.kernel.errors import BadInput

    for name in ("../out.md", "/etc/passwd", "a/b", "..", "", "a\\b"):
        with pytest.raises(BadInput, match="a path for a name"):
            _write(tmp_path / "dossier", [(name, b"x")])
    assert not (tmp_path / "out.md").exists()
