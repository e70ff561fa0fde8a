"""A server whose machine fails it: disks that fill, files that vanish, processes that cannot be started."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopwright.bundle.depot import BundleDepot
from loopwright.bundle.keys import SigningKey
from loopwright.bundle.routes import Arm, sign_routes
from loopwright.bundle.testing import route_for, table_of, tiny_bundle
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.serving import loading
from loopwright.serving.cache import Cache
from loopwright.serving.events import Event, SegmentWriter, frame
from loopwright.serving.loading import load_models
from loopwright.serving.options import ServeOptions
from loopwright.serving.pinning import trusted_keys
from loopwright.serving.shipping import Shipper
from loopwright.serving.slots import Slot
from loopwright.serving.supervisor import Supervisor
from loopwright.serving.upstream import Upstream
from loopwright.serving.wire import open_batch

KEY = SigningKey.generate()
FULL = OSError(errno.ENOSPC, "No space left on device")
STABLE = Arm("stable", 1, 1.0)


@pytest.fixture
def depot(tmp_path: Path) -> BundleDepot:
    return BundleDepot(tmp_path / "depot")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "serving")
    cache.create()
    return cache


@pytest.fixture
def make_supervisor(tmp_path: Path, cache: Cache) -> Callable[..., Supervisor]:
    def make(**options: Any) -> Supervisor:
        said: list[str] = []
        asked = ServeOptions(
            control="http://127.0.0.1:1", home=cache.folder, poll=0.0, ship=0.0, say=said.append, **options
        )
        made = Supervisor(asked, cache, Upstream(asked.control, None), [KEY.public], [])
        made.said = said  # type: ignore[attr-defined]
        return made

    return make


def fails_once(error: Exception, then: Any) -> tuple[Callable[..., Any], list[int]]:
    calls: list[int] = []

    async def act(*_: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return then

    return act, calls


def watch(job: Callable[[], Any], until: Callable[[], bool]) -> None:
    """Run the endless `job` until `until` holds; fails when it ends by itself."""

    async def run() -> None:
        task = asyncio.ensure_future(job())
        try:
            async with asyncio.timeout(5):
                while not until():
                    assert not task.done(), f"the loop ended: {task.exception()!r}"
                    await asyncio.sleep(0.001)
        finally:
            task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("job", "act"), [("poll_forever", "poll"), ("ship_forever", "ship")])
@pytest.mark.parametrize("error", [FULL, RuntimeError("a bug")])
def test_no_error_ends_the_loops_that_follow_routes_and_ship_the_log(
    make_supervisor: Callable[..., Supervisor],
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    act: str,
    error: Exception,
) -> None:
    made = make_supervisor()
    whose = made.following if act == "poll" else made
    stub, calls = fails_once(error, 0)
    monkeypatch.setattr(whose, act, stub)
    watch(getattr(whose, job), lambda: len(calls) > 1)
    assert any(str(error) in line for line in made.said)  # type: ignore[attr-defined]


def test_a_worker_that_cannot_be_started_for_a_moment_is_started_later(
    make_supervisor: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_supervisor()
    stub, calls = fails_once(OSError(errno.ENOMEM, "Cannot allocate memory"), 0)
    monkeypatch.setattr(made.workers, "_begin", stub)
    watch(lambda: made.workers.keep_alive(Slot("w0", None)), lambda: len(calls) > 1)
    assert "Cannot allocate memory" in made.said[0]  # type: ignore[attr-defined]


def test_a_new_table_reaches_the_workers_also_when_the_disk_was_full_at_first(
    make_supervisor: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    made = make_supervisor().following
    made._tell = sent.append
    monkeypatch.setattr(made._upstream, "routes", lambda: sign_routes(table_of(1), KEY))
    remember = made._profiles.remember

    def full(_: object) -> None:
        monkeypatch.setattr(made._profiles, "remember", remember)
        raise Unavailable("the disk is full")

    monkeypatch.setattr(made._profiles, "remember", full)
    with pytest.raises(Unavailable):
        asyncio.run(made.poll())
    assert asyncio.run(made.poll()) == 1
    assert sent == [{"apply": {}}]


def test_a_disk_that_fills_while_a_bundle_is_fetched_is_said_and_leaves_nothing(
    cache: Cache, depot: BundleDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = depot.add(tiny_bundle(tmp_path / "one", KEY).path)

    def write(path: Path, data: bytes) -> int:
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(Unavailable, match="No space left"):
        cache.fetch_bundle(digest, [KEY.public], lambda d, name: depot.file(d, name).read_bytes())
    assert not cache.depot.has(digest)
    assert not list(cache.folder.glob(".fetch.*"))


def test_a_version_that_breaks_while_loading_does_not_keep_the_others_away(
    depot: BundleDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = depot.add(tiny_bundle(tmp_path / "one", KEY).path)
    bad = depot.add(tiny_bundle(tmp_path / "two", KEY, bias=1.0).path)
    real = loading.open_bundle

    def open_(path: Path, keys: Any, **options: Any) -> Any:
        if path.name == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, keys, **options)

    monkeypatch.setattr(loading, "open_bundle", open_)
    table = table_of(1, route_for(KEY, {1: good, 2: bad}, [Arm("stable", 1, 0.9), Arm("canary", 2, 0.1)]))
    models = load_models(table, [KEY.public], depot, {}, {})
    assert set(models["late"].versions) == {1}
    assert "Input/output error" in models["late"].refused[2]


def shipper(folder: Path, send: Callable[[bytes], int]) -> Shipper:
    return Shipper(
        folder,
        "sv_1",
        send=send,
        profiler=lambda m, v: None,
        is_writing=lambda name: False,
        complain=pytest.fail,
    )


def test_the_log_is_shipped_and_freed_also_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SegmentWriter(tmp_path, "w0")
    log.append(frame(Event("a", "u", 1, 1, "m", 1, "stable", 1, "ok", "", [1.0], [0.5])))
    log.close()

    def write(path: Path, data: bytes) -> int:
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", write)
    got: list[bytes] = []

    def send(body: bytes) -> int:
        got.append(body)
        return open_batch(body).header.end

    assert shipper(tmp_path, send).ship() > 0
    assert len(got) == 1
    assert list(tmp_path.glob("*.seg")) == []


def test_a_segment_deleted_while_the_backlog_is_counted_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipping = shipper(tmp_path, lambda body: 0)
    (tmp_path / "w0-000001.seg").write_bytes(b"12345")
    both = [tmp_path / "w0-000000.seg", tmp_path / "w0-000001.seg"]
    monkeypatch.setattr("loopwright.serving.shipping.segment_files", lambda folder: both)
    assert shipping.backlog() == 5


def test_a_file_without_a_key_does_not_mean_trust_whoever_answers(tmp_path: Path, cache: Cache) -> None:
    empty = tmp_path / "key"
    empty.write_text("\n")
    options = ServeOptions(control="http://127.0.0.1:1", home=cache.folder, public_key=empty, wait=0.0)
    with pytest.raises(BadInput, match="holds no key"):
        trusted_keys(options, cache, Upstream(options.control, None))
    assert cache.pinned() == []


def test_only_the_keys_of_the_given_file_are_trusted(tmp_path: Path, cache: Cache) -> None:
    cache.pin([KEY.public, SigningKey.generate().public])
    given = tmp_path / "key"
    given.write_text(KEY.public.to_text())
    options = ServeOptions(control="http://127.0.0.1:1", home=cache.folder, public_key=given)
    assert trusted_keys(options, cache, Upstream(options.control, None)) == [KEY.public]
    assert cache.pinned() == [KEY.public], "nor does the other one lead to its successors"
