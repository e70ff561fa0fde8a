from pathlib import Path

import pytest

from loopwright.features.module import import_project_file, load_features
from loopwright.kernel.errors import BadInput
from loopwright.project.sections import Data
from loopwright.project.spec import Project, Spec

FEATURES = """
from loopwright.features import Spine
spine = Spine(table="rows", key=("id",), label="y", inputs=("x",))
INPUTS = {"x": "float64"}
"""
TRANSFORM = "def transform(inputs, state):\n    return inputs\n"


def project(folder: Path, features: str = FEATURES, transform: str = TRANSFORM) -> Project:
    (folder / "features.py").write_text(features)
    (folder / "transform.py").write_text(transform)
    data = Data.model_validate(
        {"sources": {"rows": {"uri": "rows.csv", "contract": "c.yaml"}}, "label": {"name": "y"}}
    )
    return Project(folder, Spec(model="m", task="binary", data=data), "digest")


def test_a_project_says_its_inputs_in_order(tmp_path: Path) -> None:
    module = load_features(project(tmp_path))
    assert dict(module.inputs) == {"x": "float64"}
    assert module.tables() == ("rows",)
    assert module.transform_source == TRANSFORM


def test_an_input_from_nowhere_names_the_nearest(tmp_path: Path) -> None:
    wrong = FEATURES.replace('"x": "float64"', '"xx": "float64"')
    with pytest.raises(BadInput, match=r"`xx` comes from nowhere.*did you mean `x`"):
        load_features(project(tmp_path, wrong))


def test_an_unknown_dtype_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean `float64`"):
        load_features(project(tmp_path, FEATURES.replace('"x": "float64"', '"x": "float"')))


def test_a_file_without_a_spine_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no `spine` is defined"):
        load_features(project(tmp_path, "INPUTS = {}"))


def test_an_error_in_the_file_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"features\.py:3.*NameError"):
        load_features(project(tmp_path, "a = 1\nb = 2\nc = nowhere\n"))


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"features\.py:2.*SyntaxError"):
        load_features(project(tmp_path, "a = 1\nb = (\n"))


def test_two_projects_may_have_files_of_the_same_name(tmp_path: Path) -> None:
    for name, value in (("first", 1), ("second", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "shared_words.py").write_text(f"VALUE = {value}")
        (folder / "features.py").write_text("from shared_words import VALUE")
        assert value == import_project_file(folder / "features.py", folder).VALUE


def test_features_may_name_another_transform(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("# other\n" + TRANSFORM)
    module = load_features(project(tmp_path, FEATURES + 'TRANSFORM = "other.py"\n'))
    assert module.transform_source.startswith("# other")


def test_two_views_of_one_name_are_refused(tmp_path: Path) -> None:
    views = 'views = [FeatureView("v", "rows", ("id",), (n,)) for n in ("a", "b")]\n'
    twice = FEATURES.replace("import Spine", "import FeatureView, Spine") + views
    with pytest.raises(BadInput, match=r"two views have one name.*\['v'\]"):
        load_features(project(tmp_path, twice))
