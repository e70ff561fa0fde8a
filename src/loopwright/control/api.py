"""Every operation as a route under /api/v1, with its arguments in the OpenAPI document."""

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from loopwright.control.context import Context
from loopwright.control.operation import Operation
from loopwright.control.plain import plain
from loopwright.control.stream import Stream


def operations_router(operations: Iterable[Operation]) -> APIRouter:
    """Return a router with one route per operation.

    A GET takes its arguments from the query, any other method from a JSON body; names in the path come from there.
    """
    router = APIRouter()
    for operation in operations:
        router.add_api_route(
            operation.path,
            _endpoint(operation),
            methods=[operation.method],
            name=operation.name,
            operation_id=operation.name,
            summary=operation.summary,
            description=inspect.getdoc(operation.function) or "",
            tags=[operation.name.partition(".")[0]],
            response_model=None,
        )
    return router


def context_of(request: Request) -> Context:
    """The home in the hands of whoever sent the request."""
    context: Context = request.app.state.context
    return context.acting_as(request.state.actor, assumed_by=request.state.assumed_by)


def _endpoint(operation: Operation) -> Callable[..., Response]:
    """Return a function whose signature FastAPI reads: it runs in a thread, since operations block."""

    def answer(request: Request, **arguments: Any) -> Response:
        body = arguments.pop("body", None)
        if body is not None:
            arguments |= {name: getattr(body, name) for name in type(body).model_fields}
        done = operation.answer(context_of(request), **arguments)
        if isinstance(done, Stream):
            return StreamingResponse(done.chunks, media_type=done.media_type, headers=done.headers)
        return JSONResponse(plain(done))

    parameters = [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)]
    for name, (kind, default) in operation.parameters.items():
        if name in operation.in_path:
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind))
        elif operation.method == "GET":
            parameters.append(_of_query(name, kind, default))
    if operation.method != "GET" and operation.body.model_fields:
        needed = any(field.is_required() for field in operation.body.model_fields.values())
        parameters.append(
            inspect.Parameter(
                "body",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=operation.body,
                default=inspect.Parameter.empty if needed else operation.body(),
            )
        )
    answer.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what FastAPI reads
    return answer


def _of_query(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, Query()],
        default=inspect.Parameter.empty if default is ... else default,
    )
