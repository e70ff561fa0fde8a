"""What the rooms promised each other and import contracts cannot say."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "loopwright"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "examples" not in path.parts)
HEAVY = (
    "alembic", "deltalake", "duckdb", "lightgbm", "matplotlib", "mlflow", "optuna", "pandas", "pyarrow", "scipy",
    "sklearn", "sqlalchemy", "torch",
)  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that `path` imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )


def test_sql_on_the_ledger_stands_in_store_files_only() -> None:
    elsewhere = [
        str(path.relative_to(SOURCE))
        for path in MODULES
        if path.name != "store.py" and path.parent.name != "ledger" and "ledger" not in path.parts
        if any(name.startswith("loopwright.ledger.schema") for name in imports(path))
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    "statement",
    [
        "import loopwright",
        "import loopwright.cli",
        "import loopwright.cli.commands",
        "import loopwright.cli.edge",
    ],
)
def test_the_command_line_starts_light(statement: str) -> None:
    assert loaded_by(statement) & {*HEAVY, "fastapi", "numpy", "onnxruntime", "pydantic", "rich"} == set()


@pytest.mark.parametrize("module", ["supervisor", "worker"])
def test_the_data_plane_starts_light(module: str) -> None:
    assert loaded_by(f"import loopwright.serving.{module}") & {*HEAVY, "fastapi", "pydantic", "onnx"} == set()


@pytest.mark.parametrize("module", ["online", "online_sqlite", "online_redis", "status"])
def test_online_features_are_read_light(module: str) -> None:
    assert (
        loaded_by(f"import loopwright.features.{module}") & {*HEAVY, "fastapi", "pydantic", "numpy"} == set()
    )


@pytest.mark.parametrize("room", sorted(path.parent.name for path in SOURCE.glob("*/__init__.py")))
def test_a_room_is_entered_without_loading_an_engine(room: str) -> None:
    assert loaded_by(f"import loopwright.{room}") & {*HEAVY, "onnxruntime", "rich"} == set()


def test_a_package_only_names_what_it_holds() -> None:
    busy = []
    for path in SOURCE.rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if sum(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body) > 1:
            busy.append(str(path.relative_to(SOURCE)))
    assert busy == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for path in MODULES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_modules_stay_readable_in_one_sitting() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in MODULES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
        and "migrations" not in path.parts
    }
    assert long == {}


def test_nothing_is_left_for_later_and_no_test_is_skipped() -> None:
    left = re.compile(
        r"\b(TODO|FIXME)\b|# XXX|raise NotImplementedError|pytest\.(mark\.)?(skip|xfail|importorskip)"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("src", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != Path(__file__) and ".cache" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if left.search(line)
    ]
    assert found == []
