"""Turns a route table into loaded models; a version without a valid approval or with one wrong byte is refused."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from loopwright.bundle.approval import ApprovalRecord, SignedRecord, verify_record
from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.isolated import Limits
from loopwright.bundle.keys import PublicKey
from loopwright.bundle.manifest import Golden, Manifest
from loopwright.bundle.open import Bundle, check_bundle, open_bundle, trusted_digest
from loopwright.bundle.routes import ModelRoute, RouteTable
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import LoopwrightError, Refused
from loopwright.kernel.stage import Stage
from loopwright.serving.models import Model, Served

WARM_UPS = 20
STANDBY = 1
"""Versions per model that stay loaded after they left the routes: the one a rollback goes back to."""


def check_approval(route: ModelRoute, version: int, keys: Sequence[PublicKey]) -> None:
    """Return when the route carries a signed approval of exactly this version and these bytes; raise otherwise.

    Tampered: the signature is wrong. Refused: it is for something else, or for a stage that may not take traffic.
    """
    entry = route.versions[str(version)]
    where = f"{route.model} version {version}"
    record = _verified(entry.approval, tuple(keys))
    if (record.model, record.version) != (route.model, version):
        raise Refused(
            "the approval is for another version", where=where, got=f"{record.model} {record.version}"
        )
    if record.bundle != entry.bundle:
        raise Refused("the approval is for other bytes", where=where, got=entry.bundle, wanted=record.bundle)
    shadow_only = all(arm.name == "shadow" for arm in route.arms if arm.version == version)
    allowed = (Stage.PRODUCTION, Stage.STAGING) if shadow_only else (Stage.PRODUCTION,)
    if record.stage not in allowed:
        raise Refused(
            "not approved for traffic",
            where=where,
            got=f"an approval for {record.stage}",
            wanted=" or ".join(allowed),
            next=f"Promote it: loopwright promote {route.model} {version} --to production",
        )


@lru_cache(maxsize=4096)
def _verified(approval: SignedRecord, keys: tuple[PublicKey, ...]) -> ApprovalRecord:
    """`verify_record`, once for a record and a set of keys: every table names those of all models again."""
    return verify_record(approval, keys)


def check_version(
    route: ModelRoute,
    version: int,
    keys: Sequence[PublicKey],
    depot: BundleDepot,
    trusted: Collection[str],
) -> Served:
    """Check the approval and every byte of a version, and return it without loading anything; raises LoopwrightError.

    trusted: digests of models that run code and may be loaded.
    """
    check_approval(route, version, keys)
    digest = route.versions[str(version)].bundle
    manifest, actual = check_bundle(depot.path(digest), keys, trusted=trusted)
    _same_model(route, version, manifest.model, actual)
    return Served.cold(version, manifest, digest, read_golden(depot.path(digest), manifest))


def read_golden(path: Path, manifest: Manifest) -> Golden | None:
    """Return a checked bundle's golden rows; None for bytes that are no longer those of the manifest."""
    raw = (path / "golden.json").read_bytes()
    return (
        msgspec.json.decode(raw, type=Golden) if sha256_bytes(raw) == manifest.files["golden.json"] else None
    )


def load_version(
    route: ModelRoute,
    version: int,
    keys: Sequence[PublicKey],
    depot: BundleDepot,
    trusted: Collection[str],
    limits: Limits | None = None,
) -> Served:
    """Check the approval, verify and load the bundle, predict its golden rows, warm it up; raises LoopwrightError.

    trusted: digests of models that run code and may be loaded. limits: of the process of a model that has its own.
    """
    check_approval(route, version, keys)
    digest = route.versions[str(version)].bundle
    bundle = load_bundle(depot.path(digest), keys, trusted, limits)
    try:
        _same_model(route, version, bundle.manifest.model, bundle.digest)
    except LoopwrightError:
        bundle.close()
        raise
    return Served.of(version, bundle)


def load_bundle(
    path: Path, keys: Sequence[PublicKey], trusted: Collection[str], limits: Limits | None = None
) -> Bundle:
    """Verify and load the bundle at `path`, predict its golden rows, and warm it up; raises LoopwrightError."""
    bundle = open_bundle(path, keys, trusted=trusted, limits=limits)
    try:
        bundle.smoke()
        for _ in range(WARM_UPS):
            # The first predictions are slower; a fresh canary must not be judged by them.
            bundle.smoke()
    except BaseException:
        bundle.close()
        raise
    return bundle


def _same_model(route: ModelRoute, version: int, model: str, digest: str) -> None:
    if digest != route.versions[str(version)].bundle or model != route.model:
        raise Refused(
            "the bundle is another model's",
            where=f"{route.model} version {version}",
            got=f"{model} {digest[:12]}",
        )


Found = Callable[[ModelRoute, int], Served | str]
"""What stands behind a version of a route: the version, or why it may not answer. May raise."""


def load_models(
    table: RouteTable,
    keys: Sequence[PublicKey],
    depot: BundleDepot,
    before: Mapping[str, Model],
    unfetched: Mapping[str, str],
) -> dict[str, Model]:
    """Return the table's models, all of them in memory; see `compose`.

    unfetched: reasons by digest for bundles the supervisor refused to keep.
    """

    def found(route: ModelRoute, version: int) -> Served | str:
        digest = route.versions[str(version)].bundle
        return unfetched.get(digest) or load_version(route, version, keys, depot, table.trusted)

    return compose(table, keys, before, found)


def compose(
    table: RouteTable, keys: Sequence[PublicKey], before: Mapping[str, Model], found: Found
) -> dict[str, Model]:
    """Return the table's models, reusing what `before` holds with the same bytes; `found` is asked for the others.

    A refused canary or shadow is left out and its share goes to stable; when stable itself is refused, what answered
    before goes on answering. Only a model that needs trust and has none any more answers no further request, even when
    nothing else can.
    """
    models: dict[str, Model] = {}
    for name, route in table.models.items():
        old = still_trusted(before.get(name), table.trusted)
        versions: dict[int, Served] = {}
        refused: dict[int, str] = {}
        for version in sorted({arm.version for arm in route.arms}):
            try:
                kept = kept_version(old, version, route.versions[str(version)].bundle)
                if kept is not None:
                    check_approval(route, version, keys)
                one = kept or found(route, version)
            except LoopwrightError as error:
                one = str(error)
            except Exception as error:  # noqa: BLE001 - it must not keep the other versions' routes from changing
                one = f"cannot be loaded ({type(error).__name__}: {error})"
            if isinstance(one, str):
                refused[version] = one
            else:
                versions[version] = one
        arms = tuple(arm for arm in route.arms if arm.version in versions)
        model = Model(name, route.salt, arms, versions, refused, _standby(old, versions), route.serving)
        if model.stable is None and old is not None and old.stable is not None:
            model = Model(name, old.salt, old.arms, old.versions, refused, old.standby, route.serving)
        models[name] = model
    return models


def kept_version(old: Model | None, version: int, digest: str) -> Served | None:
    """The version as `old` has it, answering or standing by; None when it has none with these bytes."""
    kept = (old.versions.get(version) or old.standby.get(version)) if old else None
    return kept if kept is not None and kept.digest == digest else None


def still_trusted(old: Model | None, trusted: Collection[str]) -> Model | None:
    """`old` without the models whose trust was withdrawn."""
    if old is None:
        return None

    def stays(served: Served) -> bool:
        needed = trusted_digest(served.manifest)
        return needed is None or needed in trusted

    versions = {version: served for version, served in old.versions.items() if stays(served)}
    standby = {version: served for version, served in old.standby.items() if stays(served)}
    if len(versions) == len(old.versions) and len(standby) == len(old.standby):
        return old
    arms = tuple(arm for arm in old.arms if arm.version in versions)
    return Model(old.name, old.salt, arms, versions, old.refused, standby, old.policy)


def _standby(old: Model | None, loaded: Mapping[int, Served]) -> dict[int, Served]:
    """What answered until now and does so no more, the former stable version first; then what stood by before."""
    if old is None:
        return {}
    former = old.stable
    ordered = [former] if former is not None else []
    ordered += [*old.versions.values(), *old.standby.values()]
    left = {served.version: served for served in ordered if served.version not in loaded}
    return dict(list(left.items())[:STANDBY])
