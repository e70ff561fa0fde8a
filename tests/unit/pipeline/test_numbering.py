"""What a bundle says of how it was made."""

from pathlib import Path

import pytest

from loopwright.pipeline.fit import algorithm_of
from loopwright.pipeline.numbering import recipe
from loopwright.project.spec import Project, load_project

SPEC = """\
model: late
task: binary
data:
  sources: {rows: {uri: rows.csv, contract: contracts/rows.yaml}}
  label: {name: late}
train: {entry: "train.py:train", conf: conf/train.yaml}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "loop.yaml": SPEC, "train.py": "import helper", "features.py": "", "transform.py": "", "helper.py": "",
        "conf/train.yaml": "a: 1", "tests/behaviour.py": "", "card.md": "", ".venv/lib.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def opened(folder: Path, *overrides: str) -> Project:
    return load_project(folder, overrides)


def test_the_recipe_names_what_training_reads_and_nothing_else(folder: Path) -> None:
    made = recipe(opened(folder))
    assert list(made["files"]) == ["conf/train.yaml", "features.py", "helper.py", "train.py", "transform.py"]
    assert (made["label"], made["entry"], made["search"]) == ("late", "train.py:train", None)


@pytest.mark.parametrize("change", ["data.as_of=2013-05-01T00:00:00Z", "train.seed=9", "policy.tier=low"])
def test_a_retrain_has_the_same_recipe(folder: Path, change: str) -> None:
    assert recipe(opened(folder)) == recipe(opened(folder, change))


def test_a_helper_that_training_imports_is_part_of_it(folder: Path) -> None:
    before = recipe(opened(folder))
    (folder / "helper.py").write_text("x = 1", encoding="utf-8")
    assert recipe(opened(folder)) != before


def test_tests_and_the_card_are_not(folder: Path) -> None:
    before = recipe(opened(folder))
    for name in ("tests/behaviour.py", "card.md"):
        (folder / name).write_text("x = 1", encoding="utf-8")
    assert recipe(opened(folder)) == before


def test_the_algorithm_is_the_last_step_of_a_pipeline() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert algorithm_of(make_pipeline(StandardScaler(), LogisticRegression())) == "sklearn.LogisticRegression"
    assert algorithm_of(LogisticRegression()) == "sklearn.LogisticRegression"
