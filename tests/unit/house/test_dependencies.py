"""What the code imports is what pyproject.toml declares, pinned in constraints.txt."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> set[str]:
    return {plain(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def imported(*folders: str) -> dict[str, Path]:
    """Top-level name of every module imported under `folders` → one file that does so."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder == "src" and "tests" in path.parts:  # an example brings its own tests
                continue
            if "environments" in path.parts and path.parent.name != "environments":  # rivals run in their own
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                else:
                    continue
                for name in names:
                    found.setdefault(name.partition(".")[0], path.relative_to(ROOT))
    return found


def undeclared(folders: tuple[str, ...], declared: set[str]) -> list[str]:
    distributions = packages_distributions()
    # An example's own modules lie beside it.
    own = {
        "loopwright",
        "benchmarks",
        "tests",
        "environments",  # of benchmarks, which run as scripts
        *(path.stem for path in (ROOT / "benchmarks").glob("*.py")),
        *(path.stem for path in (ROOT / "src/loopwright/examples").rglob("*.py")),
    }
    return [
        f"{path} imports {name}"
        for name, path in imported(*folders).items()
        if name not in sys.stdlib_module_names
        and name not in own
        and not {plain(each) for each in distributions.get(name, [name])} & declared
    ]


def test_the_package_declares_what_it_imports() -> None:
    declared = named(PROJECT["dependencies"]).union(
        *(named(EXTRAS[name]) for name in EXTRAS if name != "dev")
    )
    # They come with what is declared, at the version it wants.
    declared |= {
        "pydantic-core",
        "mlflow-skinny",
        "mlflow-tracing",
        "anyio",
        "protobuf",
        "py4j",
        "joblib",
        "cloudpickle",
    }
    assert undeclared(("src",), declared) == []


def test_tests_and_benchmarks_declare_what_they_import() -> None:
    # They come with what is declared; scikit-learn's own files are joblib's, ClickHouse's client packs with lz4.
    declared = {
        "lz4",
        "pydantic-core",
        "mlflow-skinny",
        "mlflow-tracing",
        "anyio",
        "protobuf",
        "joblib",
        "referencing",
    }
    declared |= named(PROJECT["dependencies"]).union(*(named(extra) for extra in EXTRAS.values()))
    assert undeclared(("tests", "benchmarks"), declared) == []


def test_every_dependency_is_pinned() -> None:
    pins = named((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    wanted = named(PROJECT["dependencies"]).union(*(named(extra) for extra in EXTRAS.values())) - {
        "loopwright"
    }
    assert wanted - pins == set()


def test_pins_name_no_machine_and_no_index() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"(#.*|[\w.-]+==[\w.+!-]+( ; .*)?)", line)] == []
