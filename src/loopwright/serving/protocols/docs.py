"""/docs: pages for people, made here, without anything from elsewhere: models, their inputs, commands that work."""

import base64
import csv
import io
import re
import shlex
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from typing import Any
from urllib.parse import quote

import msgspec

from loopwright.serving.front import Front
from loopwright.serving.http import Reply, Request, Route, encode
from loopwright.serving.models import Model
from loopwright.serving.protocols.openapi import may_predict
from loopwright.serving.protocols.schemas import (
    Shown,
    example_of,
    infer_example,
    predicted_example,
)

HTML = "text/html; charset=utf-8"
_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
pre { background: #8881; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
textarea { box-sizing: border-box; width: 100%; min-height: 12rem; font: 13px monospace; }
nav { margin-bottom: 1.5rem; } .quiet { opacity: .7; }
"""

SCRIPT = """
const form = document.getElementById("try");
if (form) form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const shown = document.getElementById("answer"), token = form.elements.token;
  const headers = { "Content-Type": "application/json" };
  if (token && token.value) headers.Authorization = "Bearer " + token.value;
  shown.textContent = "…";
  try {
    const answer = await fetch(form.dataset.path, { method: "POST", headers, body: form.elements.body.value });
    const text = await answer.text();
    try { shown.textContent = answer.status + " " + JSON.stringify(JSON.parse(text), null, 2); }
    catch { shown.textContent = answer.status + " " + text; }
  } catch (error) { shown.textContent = String(error); }
});
"""


def _allowed(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_allowed(STYLE)}; script-src {_allowed(SCRIPT)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Docs:
    """The pages."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def routes(self) -> Iterable[Route]:
        """Where they are."""
        yield Route("GET", "/docs", self.index)
        yield Route("GET", "/docs/{model}", self.model)

    async def index(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Return the list of models."""
        rows = [
            _row(
                f'<a href="/docs/{quote(name, safe="")}">{escape(name)}</a>',
                escape(_task(model)),
                escape(", ".join(f"{arm.name}: version {arm.version}" for arm in model.arms) or "none"),
            )
            for name, model in sorted(self._front.models.items())
        ]
        return _page(
            "Models",
            "<h1>Models</h1>",
            _table(("Model", "Task", "Answers"), rows) if rows else "<p>No model is served here yet.</p>",
            "<p>For programs: <a href='/openapi.json'>/openapi.json</a> (OpenAPI 3.1), "
            "<a href='/v2/models'>/v2/models</a>, <a href='/metrics'>/metrics</a>.</p>",
        )

    async def model(self, request: Request, names: Mapping[str, str]) -> Reply:
        """Return a model's page. Golden rows are shown to those who may predict."""
        target = self._front.find(names["model"])
        served = target.served
        model = target.model
        example = example_of(served, golden=may_predict(self._front, request))
        one = Shown(model, served.version, served, example)
        base = f"{request.scope.get('scheme', 'http')}://{_host(request)}"
        closed = not self._front.callers.open
        return _page(
            model.name,
            "<nav><a href='/docs'>All models</a></nav>",
            f"<h1>{escape(model.name)}</h1>",
            f"<p>{escape(_task(model))}; version {served.version} is stable.</p>",
            "<h2>Inputs</h2>",
            _table(("Input", "Type", "May be null", "Example"), _inputs(one)),
            "<h2>Outputs</h2>",
            f"<p>{escape(', '.join(one.schema.outputs))}</p>",
            "<h2>Ask</h2>",
            ""
            if example.golden
            else "<p class='quiet'>The values are made up from the types: no golden row can be shown.</p>",
            *(
                f"<h3>{escape(title)}</h3><pre>{escape(command)}</pre>"
                for title, command in commands(one, base, closed=closed)
            ),
            _answer(one),
            _form(one, closed=closed),
        )


def commands(one: Shown, base: str, *, closed: bool) -> list[tuple[str, str]]:
    """Return titles and shell commands that ask the model for its example. closed: a token is needed."""
    names = list(one.example.inputs)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    writer.writerow(["" if value is None else value for value in one.example.inputs.values()])
    split = {"columns": names, "data": [list(one.example.inputs.values())]}
    model = quote(one.model.name, safe="")

    def curl(path: str, body: str, media_type: str = "application/json") -> str:
        words = [
            f"curl -sS --globoff {shlex.quote(f'{base}{path}')}",
            f"-H 'Content-Type: {media_type}'",
            *(['-H "Authorization: Bearer $TOKEN"'] if closed else []),
            f"--data-raw {shlex.quote(body)}",
        ]
        return " \\\n  ".join(words)

    return [
        ("A row", curl(f"{one.path}/predict", _json({"inputs": one.example.inputs}))),
        (
            "Rows, by a unit that always gets the same arm",
            curl(f"{one.path}/predict", _json({"inputs": [one.example.inputs] * 2, "unit": "customer-7"})),
        ),
        ("A table, as MLflow sends it", curl(f"{one.path}/invocations", _json({"dataframe_split": split}))),
        ("CSV", curl(f"{one.path}/invocations", table.getvalue(), "text/csv")),
        ("Open Inference Protocol V2", curl(f"/v2/models/{model}/infer", _json(infer_example(one)))),
    ]


def _task(model: Model) -> str:
    return model.stable.schema.task if model.stable else "nothing may answer"


def _inputs(one: Shown) -> list[str]:
    return [
        _row(
            f"<code>{escape(field.name)}</code>",
            field.dtype,
            "yes" if field.nullable else "no",
            f"<code>{escape(_json(one.example.inputs[field.name]))}</code>",
        )
        for field in one.schema.inputs
    ]


def _answer(one: Shown) -> str:
    example = predicted_example(one)
    if example is None:
        return ""
    return f"<h3>The answer to the first</h3><pre>{escape(_indented(example))}</pre>"


def _form(one: Shown, *, closed: bool) -> str:
    token = "<p><label>Token <input type='password' name='token' autocomplete='off'></label></p>"
    body = escape(_indented({"inputs": one.example.inputs}))
    return (
        f"<h2>Try it</h2><form id='try' data-path=\"{escape(one.path)}/predict\">"
        f"<textarea name='body' aria-label='Body' spellcheck='false'>\n{body}</textarea>"
        f"{token if closed else ''}<p><button>Predict</button></p></form><pre id='answer' aria-live='polite'></pre>"
    )


def _host(request: Request) -> str:
    given = request.header(b"host") or ""
    if _HOST.fullmatch(given):
        return given
    host, port = request.scope.get("server") or ("127.0.0.1", None)
    return f"{host}:{port}" if port else str(host)


def _json(value: Any) -> str:
    return encode(value).decode()


def _indented(value: Any) -> str:
    return msgspec.json.format(encode(value), indent=2).decode()


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _table(header: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _page(title: str, *parts: str) -> Reply:
    text = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style></head><body>{''.join(parts)}<script>{SCRIPT}</script></body></html>"
    )
    headers = [
        (b"content-security-policy", POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    ]
    return Reply(200, text.encode(), HTML, headers)
