"""/docs: every address of the API on one page, without a script.

A page that fetched its scripts from elsewhere would run them with the rights of whoever is signed in.
"""

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from inspect import getdoc

from loopwright.control.operation import Operation

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;"
    "background:#fff}h2{margin-top:2.5rem;font-size:1.1rem}section{border-top:1px solid #d5dae1;padding:.4rem 0}"
    "h3{font-size:1rem;margin:.3rem 0}p{margin:.3rem 0;white-space:pre-line}.m{display:inline-block;min-width:4.2rem;"
    "font-weight:600}.a{color:#56606e;font-size:.9rem}code{font:.95em ui-monospace,monospace}"
    "@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181f}section{border-color:#2b323d}"
    ".a{color:#a4adba}}"
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}


def api_page(operations: Iterable[Operation]) -> str:
    """The page: operations by room, with method, address, role, arguments and what they do."""
    rooms: dict[str, list[Operation]] = {}
    for operation in operations:
        rooms.setdefault(operation.name.partition(".")[0], []).append(operation)
    body = "".join(
        f"<h2>{escape(room)}</h2>" + "".join(map(_section, members)) for room, members in rooms.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>API · Loopwright</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        "<body><main><h1>API</h1><p>A GET takes its arguments from the query, any other method from a JSON body. "
        'The same as a document: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{body}</main></body></html>"
    )


def _section(operation: Operation) -> str:
    arguments = ", ".join(
        name if default is ... else f"{name} (optional)"
        for name, (_, default) in operation.parameters.items()
        if name not in operation.in_path
    )
    said = escape(getdoc(operation.function) or "")
    return (
        f'<section id="{escape(operation.name)}"><h3><span class="m">{operation.method}</span> '
        f"<code>/api/v1{escape(operation.path)}</code></h3><p>{said}</p>"
        f'<p class="a">{escape(operation.name)} · at least {operation.role.name.lower()}'
        + (f" · {escape(arguments)}" if arguments else "")
        + "</p></section>"
    )
