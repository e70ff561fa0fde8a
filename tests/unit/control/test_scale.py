"""Lists show a page and say how much there is; what they ask the database does not grow with what it holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from loopwright.control.context import Context
from loopwright.control.operation import find
from loopwright.kernel.errors import BadInput
from loopwright.kernel.stage import Stage
from loopwright.registry import versions

Register = Callable[..., int]
People = dict[str, Context]


def ask(ctx: Context, operation: str, **arguments: object) -> Any:
    return find(operation)(ctx, **arguments)


@contextmanager
def asked(ctx: Context) -> Iterator[list[str]]:
    """The statements sent to the database meanwhile."""
    sent: list[str] = []

    def note(_conn: object, _cursor: object, sql: str, *_: object) -> None:
        sent.append(sql)

    event.listen(ctx.ledger.engine, "before_cursor_execute", note)
    yield sent
    event.remove(ctx.ledger.engine, "before_cursor_execute", note)


def test_a_model_shows_its_newest_versions_and_how_many_there_are(ctx: Context, register: Register) -> None:
    for _ in range(7):
        register()
    page = ask(ctx, "models.show", model="late", limit=3)
    assert [one["version"] for one in page["versions"]] == [5, 6, 7]
    assert page["total"] == 7
    before = ask(ctx, "models.show", model="late", limit=3, before=5)
    assert [one["version"] for one in before["versions"]] == [2, 3, 4]
    assert ask(ctx, "models.show", model="late", before=1)["versions"] == []
    with pytest.raises(BadInput, match="out of range"):
        ask(ctx, "models.show", model="late", limit=0)


def test_a_page_has_the_promotions_of_its_versions(people: People, register: Register) -> None:
    for number in (1, 2, 3):
        register()
        ask(people["dora"], "models.promote", model="late", version=number, to="staging")
        ask(people["ada"], "models.approve", model="late", version=number)
    page = ask(people["vera"], "models.show", model="late", limit=2)
    assert [one["version"] for one in page["promotions"]] == [2, 3]
    assert [one["approvals"][0]["reviewer"] for one in page["promotions"]] == ["ada", "ada"]
    listed = ask(people["vera"], "models.list")[0]
    assert (listed["versions"], listed["newest"], listed["staging"]) == (3, 3, [1, 2, 3])


def test_what_was_promoted_last_is_current_and_what_left_the_stage_is_not(
    ctx: Context, people: People, register: Register
) -> None:
    register()
    register()
    for number in (2, 1):
        ask(people["dora"], "models.promote", model="late", version=number, to="staging")
        ask(people["ada"], "models.approve", model="late", version=number)

    def current() -> int | None:
        with ctx.ledger.read() as conn:
            found = versions.current(conn, model="late", stage=Stage.STAGING)
            return found and found.version

    assert current() == 1
    from loopwright.registry.promotion import demote

    with ctx.ledger.write() as conn:
        demote(conn, model="late", version=1, why="no", now=ctx.now, actor=ctx.actor)
    assert current() == 2
    with ctx.ledger.read() as conn:
        assert versions.current(conn, model="late") is None
        assert versions.current(conn, model="nobody's") is None


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("models.list", {}), ("system.status", {}), ("models.show", {"model": "late"})],
)
def test_many_models_and_versions_cost_no_more_questions(
    ctx: Context, register: Register, operation: str, arguments: dict[str, object]
) -> None:
    register()
    with asked(ctx) as few:
        ask(ctx, operation, **arguments)
    for number in range(6):
        register(f"late-{number}")
        register()
    with asked(ctx) as many:
        ask(ctx, operation, **arguments)
    assert len(many) == len(few)
