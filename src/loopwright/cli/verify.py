"""verify: bundles' folders, offline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loopwright.cli.session import Session, command
from loopwright.cli.show import pairs
from loopwright.kernel.errors import BadInput, LoopwrightError

if TYPE_CHECKING:
    from loopwright.bundle.keys import PublicKey


@command("verify")
@click.argument("paths", metavar="PATH…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--key", "given", multiple=True, metavar="FILE|TEXT",
    help="A trusted public key, as text or in a file; may be given again. Default: the home's keys.",
)  # fmt: skip
def verify(session: Session, paths: tuple[Path, ...], given: tuple[str, ...]) -> int:
    """Check a bundle's folder, offline.

    Several may be named: each is told, and exit code 1 when one of them fails.
    """
    keys = _keys(given) if given else _own(session)
    if len(paths) == 1:
        answer = _verified(paths[0], keys)
        session.show(answer, _told)
        return 0 if answer["ok"] else 1
    answers = [_tried(path, keys) for path in paths]
    session.show(answers, lambda told: "\n\n".join(map(_told, told)))
    return 0 if all(answer["ok"] for answer in answers) else 1


def _told(answer: dict[str, Any]) -> str:
    return pairs({name: value for name, value in answer.items() if name != "ok"})


def _tried(path: Path, keys: Sequence["PublicKey"]) -> dict[str, Any]:
    """As `_verified`, with what is wrong as an answer: one bad folder must not hide the others."""
    try:
        return _verified(path, keys)
    except LoopwrightError as error:
        return {"path": str(path), "failed": str(error), "ok": False}


def _verified(path: Path, keys: Sequence["PublicKey"]) -> dict[str, Any]:
    from loopwright.bundle.folder import check_contents, verify_folder
    from loopwright.bundle.manifest import MANIFEST, SEAL, parse_manifest, parse_seal
    from loopwright.kernel.digest import sha256_bytes
    from loopwright.kernel.errors import NotFound

    if not (path / MANIFEST).is_file() or not (path / SEAL).is_file():
        raise NotFound(f"no bundle here: {MANIFEST} or {SEAL} is missing", where=str(path))
    digest = sha256_bytes((path / MANIFEST).read_bytes())
    raw = check_contents(path, digest)
    manifest, seal = (
        parse_manifest(raw, where=str(path)),
        parse_seal((path / SEAL).read_bytes(), where=str(path)),
    )
    if keys:
        verify_folder(path, keys)
    return {
        "path": str(path), "model": manifest.model, "bundle": digest, "created": manifest.created_at,
        "files": len(manifest.files), "digests": "match", "key": seal.key_id,
        "signature": "valid" if keys else "digests match, signature not checked against a trusted key",
        "ok": bool(keys),
    }  # fmt: skip


def _own(session: Session) -> Sequence["PublicKey"]:
    """The keys of the home, when there is one; nothing is made."""
    from loopwright.bundle.keyring import RING, open_ring
    from loopwright.bundle.keys import PublicKey
    from loopwright.kernel.home import Home

    if session.url:
        rows = session.call("keys.list")
        return [PublicKey.from_text(row["public"]) for row in rows if row["state"] != "revoked"]
    ring = Home.at(session.home).keys / RING
    return open_ring(ring.read_bytes(), where=str(ring)).public if ring.is_file() else ()


def _keys(given: Sequence[str]) -> list["PublicKey"]:
    from loopwright.bundle.keyring import open_ring
    from loopwright.bundle.keys import PublicKey

    found: list[PublicKey] = []
    for one in given:
        if one.strip().startswith("ed25519:"):
            found.append(PublicKey.from_text(one))
            continue
        try:
            raw = Path(one).read_bytes()
            lines = [line for line in raw.decode().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"neither a key nor a file of keys ({error})", where="--key", got=one) from None
        found += open_ring(raw, where=one).public if raw[:1] == b"{" else map(PublicKey.from_text, lines)
    if not found:
        raise BadInput("the file holds no key", where="--key")
    return found
