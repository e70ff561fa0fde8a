"""Says what is wrong in a file that people write: file, line, key path, what was found and what is wanted."""

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.project.located import KeyPath, Located


def explain(error: ValidationError, found: Located, root: type[BaseModel]) -> BadInput:
    """The first problem of reading `found` as a `root`; a misspelt key comes before the missing one it causes."""
    problems = sorted(
        error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden"
    )
    first = problems[0]
    path = tuple(part for part in first["loc"] if not _is_union_branch(part))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = found.where(path)
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(root, path[:-1]))
        hint = did_you_mean(str(path[-1]), known)
        wanted = f"one of {', '.join(known)}"
        return BadInput(f"unknown key `{path[-1]}`{more}", where=where, wanted=wanted, next=_sentence(hint))
    if first["type"] == "missing":
        return BadInput(f"missing key `{path[-1]}`{more}", where=where, wanted=_description(root, path))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        return BadInput(
            cause.what + more,
            where=where,
            got=_shown(cause.got),
            wanted=cause.wanted or _description(root, path),
            next=cause.next,
        )
    return BadInput(
        f"{_said(first)}{more}",
        where=where,
        got=_shown(first["input"]),
        wanted=_description(root, path),
        next=_nearest(first),
    )


def _shown(value: object) -> object:
    return "nothing" if value is None else value


def _said(problem: ErrorDetails) -> str:
    return {
        "literal_error": "not one of the choices",
        "string_type": "not text",
        "string_pattern_mismatch": "not written as it must be",
        "model_type": "not a section of keys",
        "dict_type": "not a section of keys",
        "tuple_type": "not a list",
        "too_short": "empty",
        "int_parsing": "not a whole number",
        "int_type": "not a whole number",
        "int_from_float": "not a whole number",
        "float_parsing": "not a number",
        "float_type": "not a number",
        "bool_type": "neither true nor false",
        "bool_parsing": "neither true nor false",
    }.get(problem["type"], problem["msg"][:1].lower() + problem["msg"][1:])


def _nearest(problem: ErrorDetails) -> str:
    if problem["type"] != "literal_error" or not isinstance(problem["input"], str):
        return ""
    choices = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    return _sentence(did_you_mean(problem["input"], choices))


def _sentence(hint: str) -> str:
    return hint[:1].upper() + hint[1:]


def _is_union_branch(part: str | int) -> bool:
    # pydantic names the branch it tried inside the location of `Literal["all"] | tuple[...]`.
    return isinstance(part, str) and part.startswith(("literal[", "tuple["))


def _known_keys(root: type[BaseModel], path: KeyPath) -> set[str]:
    section = _type_at(root, path)
    return set(_fields(section))


def _fields(section: Any) -> dict[str, FieldInfo]:
    """The fields of a section by the names people write; {} for anything else."""
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return {}
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _description(root: type[BaseModel], path: KeyPath) -> str:
    """The description of the field at `path`, or of the nearest field above it that has one."""
    for end in range(len(path), 0, -1):
        field = _fields(_type_at(root, path[: end - 1])).get(str(path[end - 1]))
        if field is not None:
            return field.description or ""
    return ""


def _type_at(root: type[BaseModel], path: KeyPath) -> Any:
    here: Any = root
    for part in path:
        here = bare_type(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = _fields(here).get(str(part))
            here = field.annotation if field else None
        else:
            arguments = [argument for argument in get_args(here) if argument is not Ellipsis]
            here = arguments[-1] if arguments else None
    return bare_type(here)


def bare_type(annotation: Any) -> Any:
    """Strip Annotated and `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(branch for branch in get_args(annotation) if branch is not type(None))
        else:
            return annotation
