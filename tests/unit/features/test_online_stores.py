"""What is told when an online store is not there, and that no password is."""

import sqlite3
import stat
from pathlib import Path

import pytest

from loopwright.features.online import Head, OnlineFeatures, open_store, pack, pack_key
from loopwright.kernel.errors import BadInput, NotFound, Unavailable

HEAD = Head(
    definition="d", schema=7, generation=0, change=0, entity=("id",), kinds=("string",), columns=("x",),
    dtypes=("float64",), as_of=0, timed=False, static=True,
)  # fmt: skip


def test_a_redis_that_does_not_answer_is_named_without_its_password() -> None:
    store = open_store("redis://ada:geheim@127.0.0.1:1/0?password=geheim")
    with pytest.raises(Unavailable) as told:
        store.heads("m")
    assert "geheim" not in str(told.value) and "geheim" not in store.url
    assert "redis://ada@127.0.0.1:1/0" in str(told.value)
    assert "Check that it runs" in str(told.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memcached://host", "no online store of this kind; got memcached://, wanted sqlite:"),
        ("/var/online.db", "got no scheme"),
        ("sqlite:///", "not a place for online features"),
        ("redis://host:port/0", "not a Redis URL"),
    ],
)
def test_a_url_that_names_no_store_is_bad_input(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        open_store(url)


def test_a_password_in_a_url_that_is_wrong_is_not_shown() -> None:
    with pytest.raises(BadInput) as told:
        open_store("postgresql://ada:geheim@host/db")
    assert "geheim" not in str(told.value)


def test_before_anything_is_written_there_is_no_file_and_nothing_to_read(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'online.db'}")
    assert store.heads("m") == {}
    with pytest.raises(NotFound, match="loopwright features materialize m"):
        OnlineFeatures(store).read("m", "view", ["a"])
    assert not (tmp_path / "online.db").exists()


def test_the_file_is_its_owners_only_and_readers_cannot_write_it(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    store = open_store(f"sqlite:///{path}")
    writing = store.begin("m", "view", "b")
    writing.put([(pack_key(["a"]), pack(7, None, None, [1.5]))], [], 1)
    writing.publish(HEAD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert OnlineFeatures(store).read("m", "view", ["a"]).values == {"x": 1.5}
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store._reader().execute("DELETE FROM heads")  # type: ignore[attr-defined]


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    path.write_bytes(b"not a database at all, but long enough to look like one" * 100)
    with pytest.raises(Unavailable, match="delete it and materialise again"):
        open_store(f"sqlite:///{path}").heads("m")


def test_a_file_that_was_deleted_and_made_anew_is_read_by_those_who_read_the_old_one(tmp_path: Path) -> None:
    def write(x: float) -> None:
        store = open_store(f"sqlite:///{tmp_path / 'online.db'}")
        writing = store.begin("m", "v", "b")
        writing.put([(pack_key(["a"]), pack(7, None, None, (x,)))], [], 1)
        writing.publish(HEAD)
        store.close()

    reader = OnlineFeatures(open_store(f"sqlite:///{tmp_path / 'online.db'}"))
    for x in (1.0, 2.0):
        write(x)
        reader.store.heads("m")  # as servers do every few seconds
        assert reader.read("m", "v", ["a"]).values == {"x": x}
        for file in tmp_path.glob("online.db*"):
            file.unlink()
    assert reader.store.heads("m") == {}
    with pytest.raises(NotFound):
        reader.read("m", "v", ["a"])


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'nowhere' / 'online.db'}")
    with pytest.raises(Unavailable, match="Check that the folder exists"):
        store.begin("m", "view", "b")


def test_rows_that_redis_threw_away_are_not_told_as_unknown_entities(redis_url: str) -> None:
    import redis

    store = open_store(redis_url)
    writing = store.begin("m", "view", "b")
    writing.put([(pack_key(["a"]), pack(7, None, None, [1.5]))], [], 1)
    writing.publish(HEAD)
    client = redis.Redis.from_url(redis_url)
    client.delete(*client.keys("lw:*:g*"))  # type: ignore[misc]
    with pytest.raises(Unavailable, match="maxmemory-policy noeviction"):
        OnlineFeatures(store).read("m", "view", ["a"])
    store.close()


def test_a_redis_that_wants_a_password_says_where_to_give_it(redis_url: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    client.config_set("requirepass", "geheim")
    try:
        with pytest.raises(Unavailable, match="Check user and password"):
            open_store(redis_url).heads("m")
        with pytest.raises(Unavailable, match="Check user and password") as told:
            open_store(redis_url.replace("redis://", "redis://:falsch@")).heads("m")
        assert "falsch" not in str(told.value)
    finally:
        redis.Redis.from_url(redis_url.replace("redis://", "redis://:geheim@")).config_set("requirepass", "")


def test_a_redis_without_room_says_so(redis_url: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    store = open_store(redis_url)
    writing = store.begin("m", "view", "b")
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unavailable, match="out of memory") as told:
            writing.put([(pack_key([f"{n}"]), b"somebody" * 100) for n in range(1000)], [], 1000)
        assert "somebody" not in str(told.value) and "HSET" not in str(told.value)
    finally:
        client.config_set("maxmemory", "0")
    writing.put([(pack_key(["a"]), pack(7, None, None, [1.5]))], [], 1)  # and goes on when there is
    writing.publish(HEAD)
    assert store.heads("m")["view"].rows == 1
    store.close()
