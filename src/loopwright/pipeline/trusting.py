"""Models that can only be served in a form that runs code: who trusts them, and where they lie to be looked at."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from loopwright.bundle.keys import PublicKey
from loopwright.bundle.trust import SignedTrust
from loopwright.kernel.errors import Refused
from loopwright.kernel.files import write_atomic
from loopwright.kernel.home import Home
from loopwright.ledger.engine import Ledger
from loopwright.registry.trust import store
from loopwright.training.forms import Form, Trusts, Untrusted


def trusts_of(ledger: Ledger, keys: Sequence[PublicKey]) -> Trusts:
    """The records of a home that two people made and nobody has withdrawn."""

    def find(digest: str) -> SignedTrust | None:
        with ledger.read() as conn:
            given = store.find_trust(conn, digest)
        if given is None or given.state != "approved" or given.record is None:
            return None
        return msgspec.convert(given.record, SignedTrust)

    return Trusts(find, tuple(keys))


@contextmanager
def kept_untrusted(home: Home, again: str) -> Iterator[None]:
    """Keep a form nobody trusts where a person can look at it and say how trust is asked for; `again`: what then."""
    try:
        yield
    except Untrusted as error:
        objections = error.form.scan().objections
        if objections:
            raise Refused(
                "the model cannot become ONNX, and nobody can be trusted with it as it is",
                where=error.form.file,
                got=f"{error.form.why}; {'; '.join(objections[:3])}",
                wanted="a model that converts to ONNX",
            ) from None
        path = keep_form(home, error.form)
        raise Refused(
            error.what,
            where=str(path),
            got=error.form.why,
            wanted="trust by two people, or a model that converts",
            next=f"loopwright trust request {path} --reason …; once another person approved it: {again}",
        ) from None


def keep_form(home: Home, form: Form) -> str:
    """Write the form below the home and return where. Is idempotent."""
    folder = home.root / "untrusted" / form.digest[:16]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / form.file
    if not path.exists():
        write_atomic(path, form.data)
    return str(path)
