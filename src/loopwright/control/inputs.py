"""What the inputs of a registered version are called."""

from sqlalchemy import Connection

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.manifest import MANIFEST, parse_manifest
from loopwright.control.context import Context
from loopwright.kernel.errors import BadInput, NotFound, did_you_mean
from loopwright.project.spec import Spec
from loopwright.registry.versions import get_version, list_versions


def input_names(ctx: Context, conn: Connection, model: str, version: int) -> tuple[str, ...] | None:
    """The version's inputs in the order they are logged in; None when it, or its bundle, is not in this home."""
    try:
        digest = get_version(conn, model=model, version=version).bundle
    except NotFound:
        return None
    path = BundleDepot(ctx.home.bundles).path(digest) / MANIFEST if digest else None
    if path is None or not path.is_file():
        return None
    return tuple(field.name for field in parse_manifest(path.read_bytes(), where=str(path)).schema.inputs)


def check_redacted(ctx: Context, conn: Connection, spec: Spec) -> None:
    """Raise BadInput when `serving.log.redact` names what the newest version has no input of.

    Misspelled, it would keep nothing out of the log, and nobody would notice.
    """
    newest = list_versions(conn, model=spec.model, limit=1) if spec.serving.log.redact else []
    known = input_names(ctx, conn, spec.model, newest[-1].version) if newest else None
    if known is None:
        return  # the run that makes the first version looks
    for name in spec.serving.log.redact:
        if name not in known:
            raise BadInput(
                "an input that there is not", where="loop.yaml: serving.log.redact", got=name,
                wanted=", ".join(known), next=did_you_mean(name, known),
            )  # fmt: skip
