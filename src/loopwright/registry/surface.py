"""All that MLflow offers, and what becomes of it here: the one table. Docs, guard, store and tests read it.

What the table does not name does not exist here: an unknown route answers 404, an unknown call of the registry's
store is refused (`mlflow_store`), an unannounced write to its rows too (`unit_of_work`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

Treatment = Literal["reads", "governed", "tracks", "uploads", "admins", "closed"]
"""What a route is: it reads (viewers); it changes the registry (the store decides on the model, by role, team and
policy); it changes tracking (developers); it writes artifacts (developers, not where a registered version's files lie);
it is for admins; it is not offered."""


@dataclass(frozen=True, slots=True)
class Call:
    """A method of MLflow's registry store. `made_of`: it only calls others of this table."""

    name: str
    routes: tuple[str, ...]
    who: str
    what: str
    made_of: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A route of MLflow's app: "POST runs/create" below /api/2.0/mlflow/, or "GET /graphql" as it stands."""

    method: str
    path: str
    treatment: Treatment


_VIEWER, _DEVELOPER, _ADMIN = "viewer of the model", "developer of the model", "admin"
_PROMPT = "Prompts are no models: they have no stages, and developers may do as they like with them."

CALLS = (
    # Models
    Call(
        "create_registered_model", ("POST registered-models/create",), "developer",
        "Made, and audited. At most 1,000 tags; none under `loopwright.`.",
    ),
    Call("get_registered_model", ("GET registered-models/get",), _VIEWER, "Answered."),
    Call(
        "search_registered_models", ("GET registered-models/search",), _VIEWER,
        "Answered: filters, order and pages are MLflow's own. Models that a token is not for are left out.",
    ),
    Call(
        "get_latest_versions",
        ("GET registered-models/get-latest-versions", "POST registered-models/get-latest-versions"), _VIEWER,
        "Answered: `models:/name/Stage` works.",
    ),
    Call("update_registered_model", ("PATCH registered-models/update",), _DEVELOPER, "The description; audited."),
    Call(
        "rename_registered_model", ("POST registered-models/rename",), "nobody",
        "Refused: versions, approvals and the audit log carry the name. Register under the new name.",
    ),
    Call(
        "delete_registered_model", ("DELETE registered-models/delete",), f"{_DEVELOPER}; {_ADMIN} when it has versions",
        "Done when it has no versions, or when all of them may go (see `delete_model_version`). A model that is made "
        "again under the name goes on counting: no number is given twice.",
    ),
    Call(
        "set_registered_model_tag", ("POST registered-models/set-tag",), _DEVELOPER,
        "Set, and audited; not under `loopwright.`, not MLflow's mark for prompts, at most 1,000.",
    ),
    Call(
        "delete_registered_model_tag", ("DELETE registered-models/delete-tag",), _DEVELOPER,
        "As setting.",
    ),
    Call(
        "set_registered_model_alias", ("POST registered-models/alias",), _DEVELOPER,
        "Set, and audited, for names that promise nothing. `champion`, `production`, `staging`, `prod`, `live`, "
        "`stable`, `canary`, `challenger` and `shadow` follow a version's promotion and are refused, in any spelling; "
        "so are names with letters outside ASCII, which could look like them.",
    ),
    Call("delete_registered_model_alias", ("DELETE registered-models/alias",), _DEVELOPER, "As setting."),
    Call(
        "get_model_version_by_alias", ("GET registered-models/alias",), _VIEWER,
        "Answered: `models:/name@alias` works.",
    ),
    # Versions
    Call(
        "create_model_version", ("POST model-versions/create",), _DEVELOPER,
        "Made in stage None, and audited. It has no sealed bundle, so it can be used through MLflow but neither be "
        "promoted nor served. The source must be the run's or logged model's own files, another version "
        "(`models:/name/N`) or an object store; not a path of the server, not the place of sealed bundles.",
    ),
    Call(
        "copy_model_version", (), _DEVELOPER,
        "A version like any other that a client makes: stage None, no seal. The original's tags come along, but for "
        "those under `loopwright.`, which vouch for the original. To promote the same bytes under another name, run "
        "its project under that name.", made_of=True,
    ),
    Call("get_model_version", ("GET model-versions/get",), _VIEWER, "Answered."),
    Call(
        "get_model_version_download_uri", ("GET model-versions/get-download-uri",), _VIEWER,
        "Answered: the sealed bundle's files, which any MLflow client can load.",
    ),
    Call(
        "search_model_versions", ("GET model-versions/search",), _VIEWER,
        "Answered: filters, order and pages are MLflow's own. Models that a token is not for are left out.",
    ),
    Call("update_model_version", ("PATCH model-versions/update",), _DEVELOPER, "The description; audited."),
    Call(
        "transition_model_version_stage", ("POST model-versions/transition-stage",),
        f"{_DEVELOPER}; approvals by approvers",
        "To Staging or Production: what the policy allows and nothing else; the refusal names what is missing. To None "
        "or Archived: versions that do not serve. `archive_existing_versions` is accepted: the predecessor is archived "
        "when its successor has all traffic.",
    ),
    Call(
        "delete_model_version", ("DELETE model-versions/delete",), _ADMIN,
        "Refused until the policy's `retain` is over (7 years unless it says otherwise), naming the day; never in "
        "Staging or Production, never while a rollout, a request or a rollback could need it. Its number, promotions, "
        "evidence and audit rows stay.",
    ),
    Call(
        "set_model_version_tag", ("POST model-versions/set-tag",), _DEVELOPER,
        "Set, and audited; not under `loopwright.`, at most 1,000.",
    ),
    Call("delete_model_version_tag", ("DELETE model-versions/delete-tag",), _DEVELOPER, "As setting."),
    # Webhooks
    Call(
        "create_webhook", ("POST webhooks",), _ADMIN,
        "Made, and audited: a webhook sends what happens here to another place. Private addresses are refused.",
    ),
    Call("update_webhook", ("PATCH webhooks/<webhook_id>",), _ADMIN, "As making."),
    Call("delete_webhook", ("DELETE webhooks/<webhook_id>",), _ADMIN, "Deleted, and audited."),
    Call("test_webhook", ("POST webhooks/<webhook_id>/test",), _ADMIN, "Sent."),
    Call("get_webhook", ("GET webhooks/<webhook_id>",), _ADMIN, "Answered, without its secret."),
    Call("list_webhooks", ("GET webhooks",), _ADMIN, "Answered, without secrets."),
    Call("list_webhooks_by_event", (), _ADMIN, "Asked by the server itself, when there is something to send."),
    # Prompts
    *(
        Call(name, (), "developer", _PROMPT, made_of=True)
        for name in (
            "create_prompt", "create_prompt_version", "delete_prompt", "delete_prompt_alias", "delete_prompt_tag",
            "delete_prompt_version", "delete_prompt_version_tag", "set_prompt_alias", "set_prompt_tag",
            "set_prompt_version_tag", "link_prompt_version_to_model", "link_prompt_version_to_run",
            "link_prompts_to_trace",
        )
    ),
    *(
        Call(name, (), "viewer", "Answered.", made_of=True)
        for name in (
            "get_prompt", "get_prompt_version", "get_prompt_version_by_alias", "search_prompts",
            "search_prompt_versions",
        )
    ),
)  # fmt: skip

_READ_CALLS = ("get_", "search_", "list_")

_TRACKING: dict[Treatment, str] = {
    "reads": """
        GET  experiments/get  experiments/get-by-name  experiments/search
        POST experiments/search  experiments/search-datasets
        GET  runs/get  artifacts/list  metrics/get-history  metrics/get-history-bulk  metrics/get-history-bulk-interval
        POST runs/search  artifacts/presigned-download-url
        GET  logged-models/<model_id>  logged-models/<model_id>/artifacts/directories
        GET  logged-models/<model_id>/artifacts/files
        POST logged-models/search
        GET  datasets/<dataset_id>  datasets/<dataset_id>/experiment-ids  datasets/<dataset_id>/records  datasets/search
        POST datasets/search
        GET  traces  traces/get  traces/batchGet  traces/<trace_id>  traces/<request_id>/info  unified-traces
        GET  traces/<trace_id>/assessments/<assessment_id>  get-online-trace-details  get-trace-artifact
        POST traces/search  traces/batchGetInfos  traces/calculate-filter-correlation  traces/metrics
        GET  issues/<issue_id>  label-schemas/get  label-schemas/get-by-name  label-schemas/list
        POST issues/search
        GET  review-queues/get  review-queues/get-by-name  review-queues/list  review-queues/items/list
        GET  scorers/get  scorers/list  scorers/versions  server-info
        GET  /  /health  /version  /graphql  /get-artifact  /model-versions/get-artifact  /static-files/<path:path>
        POST /graphql
        GET  /mlflow-artifacts/artifacts  /mlflow-artifacts/artifacts/<path:artifact_path>
        GET  /mlflow-artifacts/presigned/<path:artifact_path>
    """,
    "tracks": """
        POST   experiments/create  experiments/delete  experiments/restore  experiments/update
        POST   experiments/set-experiment-tag  experiments/delete-experiment-tag
        POST   runs/create  runs/delete  runs/restore  runs/update  runs/log-metric  runs/log-parameter  runs/log-batch
        POST   runs/log-inputs  runs/log-model  runs/outputs  runs/set-tag  runs/delete-tag
        POST   logged-models  logged-models/<model_id>/params
        PATCH  logged-models/<model_id>  logged-models/<model_id>/tags
        DELETE logged-models/<model_id>  logged-models/<model_id>/tags/<tag_key>
        POST   datasets/create  datasets/<dataset_id>/records
        POST   datasets/<dataset_id>/add-experiments  datasets/<dataset_id>/remove-experiments
        PATCH  datasets/<dataset_id>/tags
        DELETE datasets/<dataset_id>  datasets/<dataset_id>/records  datasets/<dataset_id>/tags/<key>
        POST   traces  traces/delete-traces  traces/link-prompts  traces/link-to-run  traces/<trace_id>/assessments
        PATCH  traces/<request_id>  traces/<trace_id>/assessments/<assessment_id>
        PATCH  traces/<trace_id>/tags
        DELETE traces/<trace_id>/assessments/<assessment_id>  traces/<trace_id>/tags
        POST   issues
        PATCH  issues/<issue_id>
        POST   label-schemas/create
        PATCH  label-schemas/update
        DELETE label-schemas/delete
        POST   review-queues/create  review-queues/delete  review-queues/get-or-create-user  review-queues/update
        POST   review-queues/items/add  review-queues/items/remove  review-queues/items/set-status
        POST   scorers/register
        DELETE scorers/delete
        POST   /v1/traces
    """,
    "uploads": """
        POST   upload-artifact
        PUT    /mlflow-artifacts/artifacts/<path:artifact_path>
        DELETE /mlflow-artifacts/artifacts/<path:artifact_path>
        POST   /mlflow-artifacts/mpu/create/<path:artifact_path>  /mlflow-artifacts/mpu/complete/<path:artifact_path>
        POST   /mlflow-artifacts/mpu/abort/<path:artifact_path>
    """,
    "closed": """
        GET    gateway-proxy  prompt-optimization/<path:rest>  jobs/<path:rest>  gateway/<path:rest>
        GET    scorers/online-configs  ui-telemetry  workspaces  workspaces/<path:rest>
        GET    assistant/<path:rest>  mcp-servers  mcp-servers/<path:rest>  /gateway/<path:rest>  /jobs/<path:rest>
        GET    /build/<path:filename>
        POST   gateway-proxy  prompt-optimization/<path:rest>  gateway/<path:rest>  demo/generate  demo/delete
        POST   genai/evaluate/invoke  issues/invoke  scorer/invoke  ui-telemetry  workspaces
        POST   artifacts/presigned-upload-url  runs/create-promptlab-run
        POST   /api/2.0mlflow/experiments/search-datasets  /ajax-api/2.0mlflow/experiments/search-datasets
        POST   assistant/<path:rest>  mcp-servers  mcp-servers/<path:rest>  /gateway/<path:rest>
        PATCH  jobs/<path:rest>  workspaces/<path:rest>  gateway/<path:rest>  assistant/<path:rest>
        POST   /jobs/  /jobs/<path:rest>
        PATCH  mcp-servers/<path:rest>  /jobs/<path:rest>
        PUT    scorers/online-config  assistant/<path:rest>
        DELETE gateway/<path:rest>  prompt-optimization/<path:rest>  workspaces/<path:rest>  mcp-servers/<path:rest>
    """,
}
"""Routes that are no registry call. Closed ones run code, keep secrets or reach out to other services; a presigned
upload would go past the guard."""


def _routes() -> Iterator[Route]:
    for treatment, text in _TRACKING.items():
        for line in text.split("\n"):
            method, *paths = line.split() or [""]
            yield from (Route(method, path, treatment) for path in paths)
    for call in CALLS:
        reads = call.name.startswith(_READ_CALLS)
        treatment = (
            "admins" if call.who == _ADMIN and "webhook" in call.name else "reads" if reads else "governed"
        )
        for route in call.routes:
            method, path = route.split(" ")
            yield Route(method, path, treatment)


ROUTES = tuple(_routes())
_PLAIN = {(route.method, route.path): route for route in ROUTES if "<" not in route.path}
_VARYING = tuple(route for route in ROUTES if "<" in route.path)

_API = re.compile(r"/(?:ajax-)?api/\d+\.\d+/(mlflow|mlflow-artifacts)/(.*)", re.DOTALL)
_JOBS = re.compile(r"/ajax-api/\d+\.\d+(/jobs/.*)", re.DOTALL)


def plain_path(path: str) -> str:
    """The path as the table spells it: "runs/create" for /api/2.0/mlflow/runs/create, "/graphql" as it stands."""
    found = _API.fullmatch(path)
    if found is not None:
        service, rest = found.groups()
        return rest if service == "mlflow" else f"/{service}/{rest}"
    jobs = _JOBS.fullmatch(path)
    return jobs.group(1) if jobs else path


def route_of(method: str, path: str) -> Route | None:
    """The table's row for a request; None for what it does not name. HEAD and OPTIONS go with GET."""
    spelled = plain_path(path)
    for asked in (method, "GET") if method in ("HEAD", "OPTIONS") else (method,):
        if (asked, spelled) in _PLAIN:
            return _PLAIN[asked, spelled]
        for route in _VARYING:
            if route.method == asked and _pattern(route.path).fullmatch(spelled):
                return route
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(<[^>]+>)", template)
    return re.compile(
        "".join(
            (".+" if part.startswith("<path:") else "[^/]+") if part.startswith("<") else re.escape(part)
            for part in parts
        ),
        re.DOTALL,
    )


def known_calls() -> frozenset[str]:
    """The names of all calls of the registry's store that the table classifies."""
    return frozenset(call.name for call in CALLS)
