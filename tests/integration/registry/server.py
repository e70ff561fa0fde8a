"""A control plane reduced to its MLflow app: `python server.py HOME PORT`. The token is "name:role"; none means 401."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from loopwright.kernel.actor import Actor, Role
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.registry.identity import current_actor
from loopwright.registry.mlflow_app import create_mlflow_app


class ByToken:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        given = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        name, _, role = given.removeprefix("Bearer ").partition(":")
        token = current_actor.set(Actor(name, Role.parse(role)) if role else None)
        try:
            await self.app(scope, receive, send)
        finally:
            current_actor.reset(token)


home = Home.at(sys.argv[1]).create()
ledger = Ledger.open(home.ledger_url)
ledger.migrate()
app = Starlette(routes=[Mount("/mlflow", app=ByToken(create_mlflow_app(home, ledger)))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
