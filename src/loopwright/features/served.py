"""Which inputs of a model are features of which view: what a bundle says, so that servers can look them up."""

from collections.abc import Mapping
from datetime import timedelta

from loopwright.bundle.manifest import OnlineView
from loopwright.features.definition import definition_digest
from loopwright.features.module import FeatureModule, View
from loopwright.features.newest import layout_of
from loopwright.features.view import FeatureView, as_mapping

_KINDS = {"int": "int64", "uin": "int64", "flo": "float64", "dou": "float64", "dec": "float64", "hal": "float64",
          "boo": "bool"}  # fmt: skip

Types = Mapping[str, str]
"""Column → type, in Arrow's words."""


def online_views(
    module: FeatureModule, label_available_after: timedelta, tables: Mapping[str, Types]
) -> tuple[OnlineView, ...]:
    """One entry per view that an input is taken from. `tables`: the columns of the tables that the views read."""
    carried = _carried(module)
    made = [_one(module, view, label_available_after, tables, carried) for view in module.views]
    return tuple(view for view in made if view.inputs)


def _one(
    module: FeatureModule,
    view: View,
    label_available_after: timedelta,
    tables: Mapping[str, Types],
    carried: Mapping[str, str],
) -> OnlineView:
    layout = layout_of(module, view, label_available_after)
    kinds: dict[str, str] = {}
    for part in layout.entity:
        if _plain(part) in carried:
            kinds[part] = module.inputs[carried[_plain(part)]]
        elif (found := tables.get(module.spine.table, {}).get(_plain(part))) is not None:
            kinds[part] = _KINDS.get(found[:3], "string")
    ttl = view.ttl if isinstance(view, FeatureView) else None
    return OnlineView(
        name=view.name,
        definition=layout.definition,
        basis=layout.basis,
        view=definition_digest(view),
        entity=layout.entity,
        kinds=tuple(kinds.get(part, "") for part in layout.entity),
        inputs={name: name for name in layout.names},
        parts={part: carried[_plain(part)] for part in layout.entity if _plain(part) in carried},
        ttl_us=None if ttl is None else ttl // timedelta(microseconds=1),
    )


def _carried(module: FeatureModule) -> dict[str, str]:
    """Column of the spine's table → the input that is that very column."""
    return {
        _plain(sql): name
        for name, sql in as_mapping(module.spine.inputs).items()
        if name in module.inputs and _plain(sql)
    }


def _plain(sql: str) -> str:
    """The column that an expression is nothing but; "" for any other expression."""
    sql = sql.strip()
    if len(sql) > 2 and sql[0] == sql[-1] == '"' and '"' not in sql[1:-1].replace('""', ""):
        return sql[1:-1].replace('""', '"')
    return sql if sql.isidentifier() else ""
