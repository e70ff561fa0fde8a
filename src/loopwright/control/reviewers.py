"""Who could say yes to a pending promotion: for the answer to "what is it waiting for, and by whom"."""

from datetime import datetime

from sqlalchemy import Connection

from loopwright.control import store
from loopwright.registry.assess import barred, counting
from loopwright.registry.policies import governing
from loopwright.registry.policy import Promotion
from loopwright.registry.promotion import dated
from loopwright.registry.store import get_version, team_of


def may_review(conn: Connection, promotion: Promotion, now: datetime) -> list[str]:
    """Names of the users who may still approve: people, not disabled, with the role, whom four eyes do not bar."""
    promotion = dated(conn, promotion, now)
    version, policy = get_version(conn, promotion.model, promotion.version), governing(conn, promotion)
    needed, team = policy.rules(promotion.stage).reviewer, team_of(conn, promotion.model)
    given, _ = counting(version, promotion, policy, now)
    out = {name for _, name in barred(version, promotion, policy)} | {approval.reviewer for approval in given}
    return [
        user.name
        for user in store.list_users(conn)
        if user.disabled_at is None and not user.service and user.name not in out
        if user.actor(via="").role_on(model=promotion.model, team=team) >= needed
    ]
