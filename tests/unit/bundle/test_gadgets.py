"""Names that look harmless and lead to running something: found by the scan or, where only an import tells, at loading.

Each of the first list did its harm with a signed record before it was denied.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from loopwright.bundle.gadgets import denied, makes
from loopwright.bundle.pickles import scan_bytes
from loopwright.kernel.errors import LoopwrightError, Refused
from tests.unit.bundle.test_pickles import dumped, forced, text

HEAD = b"\x80\x04"


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def listed(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def held(data: str) -> bytes:
    raw = data.encode()
    return b"C" + bytes([len(raw)]) + raw


def with_attribute(name: str, value: bytes, then: bytes) -> bytes:
    """An object of a class anybody would allow, whose attribute takes a method's place; then what calls it."""
    return called("sklearn.base", "BaseEstimator") + b"}" + text(name) + value + b"sb" + then


def distribution(trace: str) -> bytes:
    code = f"open({trace!r}, 'w')"
    return (
        named("scipy.stats._distn_infrastructure", "rv_continuous")
        + b")\x81}"
        + (text("_parse_arg_template") + text(code) + b"sb")
    )


FOUND: dict[str, Callable[[str], bytes]] = {
    "a program, by psutil": lambda t: called("psutil", "Popen", listed(text("touch"), text(t))),
    "a program, by MLflow": lambda t: called("mlflow.utils.process", "_exec_cmd", listed(text("touch"), text(t))),
    "the import system writes a file": lambda t: called(
        "_frozen_importlib_external", "_write_atomic", text(t), held("x")
    ),
    "the import system calls": lambda t: called(
        "_frozen_importlib", "_call_with_frames_removed", named("_frozen_importlib_external", "_write_atomic"), text(t),
        held("x"),
    ),
    "the import system imports": lambda t: called("_frozen_importlib", "_gcd_import", text("antigravity")),
    "Python's io in Python": lambda t: called("_pyio", "FileIO", text(t), text("w")),
    "bz2 empties a file": lambda t: called("bz2", "BZ2File", text(t), text("w")),
    "gzip empties a file": lambda t: called("gzip", "GzipFile", text(t), text("w")),
    "lzma empties a file": lambda t: called("lzma", "LZMAFile", text(t), text("w")),
    "a mailbox makes folders": lambda t: called("mailbox", "Maildir", text(t)),
    "argparse opens a file": lambda t: (
        called("collections", "UserString", text("a")) + b"}" + text("append")
        + called("argparse", "FileType", text("w")) + b"sb" + text(t) + b"a"
    ),
    "duckdb copies": lambda t: called("duckdb", "sql", text(f"copy (select 1) to '{t}'")),
    "pyarrow opens a file": lambda t: called("pyarrow", "OSFile", text(t), text("w")),
    "alembic loads a file": lambda t: called("alembic.util.pyfiles", "load_python_file", text("/tmp"), text("x.py")),
    "sqlalchemy connects": lambda t: called("sqlalchemy", "create_engine", text(f"sqlite:///{t}")),
    "gunicorn imports by name": lambda t: called("gunicorn.util", "import_app", text("os:system")),
    "uvicorn imports by name": lambda t: called("uvicorn.importer", "import_from_string", text("os:system")),
    "werkzeug imports by name": lambda t: called("werkzeug.utils", "import_string", text("os:system")),
    "a template": lambda t: called("jinja2", "Template", text("{{ 1 }}")),
    "a C library": lambda t: called("llvmlite.binding", "load_library_permanently", text("libc.so.6")),
    "click starts a program": lambda t: called("click", "launch", text(t)),
    "a pickle within shap's file": lambda t: called("shap._serializable", "Deserializer"),
    "pandas imports by name": lambda t: called("pandas.compat._optional", "import_optional_dependency", text("os")),
    "pandas writes a report": lambda t: called("pandas.util._print_versions", "show_versions", text(t)),
    "scipy writes a matrix": lambda t: called("scipy.sparse", "save_npz", text(t), named("builtins", "int")),
    "a distribution executes its state": distribution,
    "numpy hands out any name": lambda t: called("numpy.core", "_ufunc_reconstruct", text("os"), text("system")),
    "a method by its name": lambda t: called("numpy.ma.core", "_frommethod", text("tofile")),
    "codecs are registered": lambda t: called("copyreg", "add_extension", text("os"), text("system"), b"K\x05"),
    "pickling is changed": lambda t: called("copyreg", "pickle", named("builtins", "int"), named("builtins", "list")),
    "a namedtuple": lambda t: called("collections", "namedtuple", text("a"), text("b")),
    "a filter on files": lambda t: called("filecmp", "cmp", text("/etc/passwd"), text("/etc/passwd")),
    "estimators by walking packages": lambda t: called("sklearn.utils.discovery", "all_estimators"),
}  # fmt: skip

FOUND_WHEN_LOADED: dict[str, Callable[[str], bytes]] = {
    "a function of an allowed library": lambda t: called("sklearn.__check_build", "raise_build_error", text(t)),
    "a function that calls what it is given": lambda t: called(
        "scipy.optimize", "fsolve", named("builtins", "list"), text(t)
    ),
    "a maker of generators calls its second argument": lambda t: called(
        "numpy.random._pickle", "__generator_ctor", text(t), named("builtins", "list")
    ),
    "append is a function": lambda t: with_attribute("append", named("builtins", "list"), text(t) + b"a"),
    "extend is a function": lambda t: with_attribute("extend", named("builtins", "list"), b"(" + text(t) + b"e"),
    "add is a function": lambda t: with_attribute("add", named("builtins", "list"), b"(" + text(t) + b"\x90"),
    "setstate is a function": lambda t: with_attribute("__setstate__", named("builtins", "list"), text(t) + b"b"),
    "an object where a class should be": lambda t: named("numpy", "log1p") + b")\x81",
    "a function of numpy, by obj": lambda t: b"(" + named("numpy", "log1p") + b"K\x01o",
}  # fmt: skip


@pytest.mark.parametrize("attack", FOUND, ids=FOUND.keys())
def test_the_scan_finds_what_leads_to_running_something(attack: str, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    data = HEAD + FOUND[attack](str(trace)) + b"."
    assert scan_bytes(data).objections, attack
    with pytest.raises(LoopwrightError):
        forced(data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attack", FOUND_WHEN_LOADED, ids=FOUND_WHEN_LOADED.keys())
def test_the_loader_calls_classes_and_what_plain_models_need_and_nothing_else(
    attack: str, tmp_path: Path
) -> None:
    data = HEAD + FOUND_WHEN_LOADED[attack](str(tmp_path / "t")) + b"."
    assert not scan_bytes(data).denied, "a scan imports nothing, so it cannot know"
    with pytest.raises(Refused):
        forced(data)
    assert not list(tmp_path.iterdir())


def test_a_function_is_not_changed_by_what_is_loaded() -> None:
    for state in (b"}" + text("a") + b"K\x01s", b"N}" + text("__defaults__") + b"Ns\x86"):
        data = HEAD + named("sklearn.utils.validation", "check_array") + b"\x94h\x00" + state + b"b0."
        with pytest.raises(Refused):
            forced(data)


ROWS = np.random.default_rng(7).random((60, 3))
LATE = (ROWS.sum(axis=1) > 1.5).astype(int)
MODELS = {
    "forest": RandomForestClassifier(3, random_state=7),
    "boosting": HistGradientBoostingClassifier(max_iter=3),
    "neighbours": KNeighborsClassifier(algorithm="kd_tree"),
    "search": GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
    "pipeline": make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), LogisticRegression()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("protocol", [2, 5])
def test_plain_models_still_load_and_answer_the_same(name: str, protocol: int) -> None:
    model = MODELS[name].fit(ROWS, LATE)
    for data in (pickle.dumps(model, protocol), dumped(model)):
        assert scan_bytes(data).objections == ()
        assert np.array_equal(forced(data).predict_proba(ROWS), model.predict_proba(ROWS))


def test_of_the_standard_library_little_may_be_had() -> None:
    for module, name in (("collections", "OrderedDict"), ("datetime", "datetime"), ("decimal", "Decimal")):
        assert denied(module, name) == ""
    for module, name in (
        ("collections", "UserDict"),
        ("zoneinfo", "ZoneInfo"),
        ("math", "exp"),
        ("ast", "parse"),
    ):
        assert denied(module, name)


def test_a_makers_extra_argument_is_not_called() -> None:
    assert makes("numpy.random._pickle", "__generator_ctor", 1)
    assert not makes("numpy.random._pickle", "__generator_ctor", 2)
    assert makes("any.module", "__pyx_unpickle_Tree", 3)
    assert not makes("numpy", "log1p", 1)
