"""A run's parameters: YAML and overrides, composed into one value that is stored with the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopwright.kernel.digest import canonical_json
from loopwright.kernel.errors import BadInput, did_you_mean
from loopwright.project.located import parse_scalar, read_yaml
from loopwright.project.spec import Project


def load_config(project: Project, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The parameters of `train.conf` (none: empty) with `overrides` applied. Raises BadInput."""
    name = project.spec.train.conf
    if name is None:
        return compose({}, overrides, "train.conf", closed=False)
    path = project.path(name)
    values = read_yaml(path).data
    if not isinstance(values, dict):
        raise BadInput(
            "not a mapping of parameters", where=str(path), got=type(values).__name__, wanted="key: value"
        )
    return compose(values, overrides, str(path))


def compose(
    values: Mapping[str, Any], overrides: Sequence[str], where: str | Path, *, closed: bool = True
) -> dict[str, Any]:
    """`values` with overrides "a.b=c" (c in YAML) applied in order; `values` itself is left as it is.

    `closed`: an override of a key that is not there is BadInput, naming the nearest that is. The result holds
    only what JSON can hold.
    """
    composed: dict[str, Any] = _copy(values)
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or "" in keys:
            raise BadInput(
                "not an override", where=str(where), got=override, wanted="key=value, like num_leaves=31"
            )
        place = composed
        for depth, key in enumerate(keys):
            if closed and key not in place:
                known = sorted(place)
                raise BadInput(
                    f"unknown parameter `{'.'.join(keys[: depth + 1])}`",
                    where=str(where),
                    got=override,
                    wanted=f"one of {', '.join(known)}",
                    next=did_you_mean(key, known),
                )
            if depth == len(keys) - 1:
                place[key] = parse_scalar(text)
                break
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise BadInput(
                    f"`{key}` holds no keys", where=str(where), got=override, wanted="a mapping there"
                )
            place = inner
    canonical_json(composed)
    return composed


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(inner) for inner in value]
    return value
