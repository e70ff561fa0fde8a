"""Whose signatures a server believes when it starts."""

import time
from collections.abc import Callable
from typing import TypeVar

from loopwright.bundle.keyring import open_ring
from loopwright.bundle.keys import PublicKey
from loopwright.kernel.errors import BadInput, Refused, Unavailable
from loopwright.serving.cache import Cache
from loopwright.serving.options import ServeOptions
from loopwright.serving.upstream import Upstream

T = TypeVar("T")


def trusted_keys(options: ServeOptions, cache: Cache, upstream: Upstream) -> list[PublicKey]:
    """Return the keys to trust: those followed from --public-key, else from an earlier pin, else pinned now."""
    if options.public_key is not None:
        try:
            lines = options.public_key.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot be read ({error})", where=f"--public-key {options.public_key}") from None
        given = [PublicKey.from_text(line) for line in lines if line.strip()]
        if not given:
            raise BadInput("the file holds no key", where=f"--public-key {options.public_key}")
        cache.pin(given)
        return cache.followed() or given
    pinned = cache.pinned()
    if pinned:
        return pinned
    keys, document = _patiently(upstream.keys, options)
    if not keys:
        raise Refused("the control plane names no key", where=upstream.url)
    if document:
        # The newest key is the one to pin: it is trusted longest, and speaks for those before it.
        cache.pin(open_ring(document, where=upstream.url).public[:1])
        keys = cache.follow(document)
    else:
        cache.pin(keys)
    options.say(f"trusting the control plane's key {', '.join(key.key_id for key in keys)} from now on")
    return cache.pinned()


def _patiently(act: Callable[[], T], options: ServeOptions) -> T:
    until = time.monotonic() + options.wait
    while True:
        try:
            return act()
        except Unavailable:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)
