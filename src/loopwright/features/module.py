"""Loads a project's feature definitions: `features.py` and the transform beside it."""

import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

from loopwright.bundle.transform import Transform, load_transform
from loopwright.features.view import FeatureView, Spine, WindowedRate, as_mapping
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.project.spec import Project

Dtype = Literal["float64", "int64", "bool", "string"]
Task = Literal["binary", "multiclass", "regression"]
View = FeatureView | WindowedRate

_importing = threading.RLock()


@dataclass(frozen=True, slots=True)
class FeatureModule:
    """What `features.py` says. `inputs` is the order and dtype of what one request brings.

    `classes`: the label's classes in index order, when the project fixes them; else they are read off the
    labels.
    """

    spine: Spine
    views: tuple[View, ...]
    inputs: Mapping[str, Dtype]
    task: Task = "binary"
    classes: tuple[str, ...] = ()
    transform_source: str = ""
    where: str = "features.py"

    @property
    def transform(self) -> Transform:
        """The project's `fit` and `transform`, executed afresh from `transform_source`."""
        return load_transform(self.transform_source)

    def tables(self) -> tuple[str, ...]:
        """Names of the tables the frame is built from, the spine's first."""
        views = [view for view in self.views if isinstance(view, FeatureView)]
        return tuple(dict.fromkeys([self.spine.table, *(name for view in views for name in view.tables())]))

    def produced(self) -> tuple[str, ...]:
        """Names of all inputs that the spine and the views can give."""
        names = [*as_mapping(self.spine.inputs)]
        for view in self.views:
            if isinstance(view, FeatureView):
                names += view.names()
            else:
                names += [view.name, view.count] if view.count else [view.name]
        return tuple(names)


def load_features(project: Project) -> FeatureModule:
    """Run the project's features file and check it. Raises BadInput naming the file, what is wrong and what
    is near."""
    path = project.path(project.spec.features)
    source = import_project_file(path, project.dir)
    where = str(path)
    spine = getattr(source, "spine", None)
    if not isinstance(spine, Spine):
        raise BadInput(
            "no `spine` is defined",
            where=where,
            got=type(spine).__name__,
            wanted="spine = Spine(table=..., ...)",
            next="from loopwright.features import Spine",
        )
    views = tuple(getattr(source, "views", ()))
    for view in views:
        if not isinstance(view, FeatureView | WindowedRate):
            raise BadInput(
                "`views` holds something else", where=where, got=view, wanted="FeatureView or WindowedRate"
            )
    declared = getattr(source, "INPUTS", None)
    if not isinstance(declared, dict) or not declared:
        raise BadInput(
            "no `INPUTS` is defined",
            where=where,
            got=declared,
            wanted='INPUTS = {"name": "float64", ...}',
            next=f"Name what one request brings, with one of {', '.join(get_args(Dtype))}.",
        )
    transform_path = project.path(str(getattr(source, "TRANSFORM", "transform.py")))
    if not transform_path.is_file():
        raise BadInput(
            "the transform is missing",
            where=where,
            got=str(transform_path),
            wanted="a file with `fit` and `transform`",
        )
    module = FeatureModule(
        spine=spine,
        views=views,
        inputs=declared,
        task=project.spec.task,
        classes=tuple(str(name) for name in getattr(source, "CLASSES", ())),
        transform_source=transform_path.read_text(encoding="utf-8"),
        where=where,
    )
    check_inputs(module)
    return module


def check_inputs(module: FeatureModule) -> None:
    """Raise BadInput unless every input is produced exactly once and has a known dtype."""
    produced = module.produced()
    for name in produced:
        if name.startswith("_"):
            raise BadInput(
                "names that start with `_` are reserved", where=module.where, got=name, wanted="another name"
            )
    called = [view.name for view in module.views]
    if twice := {name for name in called if called.count(name) > 1}:
        raise BadInput(
            "two views have one name", where=module.where, got=sorted(twice), wanted="each name once"
        )
    twice = {name for name in produced if produced.count(name) > 1}
    if twice:
        raise BadInput(
            "two sources give the same input", where=module.where, got=sorted(twice), wanted="each name once"
        )
    for name, dtype in module.inputs.items():
        if dtype not in get_args(Dtype):
            raise BadInput(
                f"input `{name}` has an unknown dtype",
                where=f"{module.where}: INPUTS",
                got=dtype,
                wanted=f"one of {', '.join(get_args(Dtype))}",
                next=did_you_mean(str(dtype), get_args(Dtype)),
            )
        if name not in produced:
            raise BadInput(
                f"input `{name}` comes from nowhere",
                where=f"{module.where}: INPUTS",
                wanted=f"an input of the spine or a view's column: {', '.join(produced)}",
                next=did_you_mean(name, produced),
            )


def import_project_file(path: Path, root: Path) -> ModuleType:
    """Run a project's Python file and return its module; files beside it (under `root`) can be imported by
    it.

    Leaves nothing behind in `sys.path` or `sys.modules`, so two projects may both have a `features.py`. Safe
    to call from several threads. Raises BadInput for a missing file, or for an error in it, naming the line.
    """
    if not path.is_file():
        raise BadInput(
            "the file is missing",
            where=str(path),
            wanted="a Python file",
            next="Create it, or mend loop.yaml.",
        )
    name = f"_loopwright_project_{path.stem}_{sha256_bytes(str(path.resolve()).encode())[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise BadInput("not a Python file", where=str(path), wanted="a name that ends in .py")
    module = importlib.util.module_from_spec(found)
    with _siblings_importable(root):
        sys.modules[name] = module  # dataclasses and pickling look the module up by name
        try:
            found.loader.exec_module(module)
        except Exception as error:
            raise BadInput(
                f"{type(error).__name__}: {error}",
                where=f"{path}:{_line(error, path)}",
                next="Mend the file.",
            ) from error
    return module


@contextmanager
def _siblings_importable(root: Path) -> Iterator[None]:
    root = root.resolve()
    with _importing:
        before = set(sys.modules)
        writing = sys.dont_write_bytecode
        sys.path.insert(0, str(root))
        sys.dont_write_bytecode = True  # a project may lie in a read-only place
        try:
            yield
        finally:
            sys.path.remove(str(root))
            sys.dont_write_bytecode = writing
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).resolve().is_relative_to(root):
                    del sys.modules[name]


def _line(error: BaseException, path: Path) -> int:
    """The last line of `path` that the error passed through; 0 when none."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    lines: Sequence[int] = [0]
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            lines = [step.tb_lineno]
        step = step.tb_next
    return lines[0]
