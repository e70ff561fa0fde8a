"""When a worker's size is a reason to replace it, and when replacing it would be of no use."""

from itertools import pairwise

import pytest

from loopwright.kernel.errors import BadInput
from loopwright.kernel.sizes import parse_size, said_size
from loopwright.serving.memory import LOOKS, Ceiling

MB = 1_000_000


class Server:
    """A ceiling of 1 GB and rests of 60 s, looked at once a second. Workers were 100 MB when they came up."""

    def __init__(self, limit: int = 1000 * MB) -> None:
        self.ceiling = Ceiling(limit, rest=60.0)
        self.now = 0.0
        self.pids: dict[str, int] = {}

    def look(self, fresh: int = 100, **taken: int) -> str | None:
        self.now += 1.0
        sizes = {slot: (self.pids.setdefault(slot, 1), fresh * MB, mb * MB) for slot, mb in taken.items()}
        judged = self.ceiling.judge(sizes, self.now)
        return judged[0] if judged else None

    def until(self, seconds: int, fresh: int = 100, **taken: int) -> list[tuple[float, str]]:
        """Who was named when."""
        looks = [(self.look(fresh, **taken), self.now) for _ in range(seconds)]
        return [(at, name) for name, at in looks if name]

    def replaced(self, slot: str) -> None:
        self.pids[slot] += 1


def test_a_worker_over_the_ceiling_goes_once_it_has_rested() -> None:
    assert Server().until(100, w0=1100) == [(61.0, "w0")]


def test_a_peak_that_passes_is_no_reason() -> None:
    server = Server()
    server.until(100, w0=500)
    for _ in range(20):
        assert server.until(LOOKS - 1, w0=5000) == []
        assert server.look(w0=900) is None
    assert server.until(LOOKS, w0=5000)[0][1] == "w0"


def test_exactly_the_ceiling_is_within_it() -> None:
    assert Server().until(100, w0=1000) == []


def test_of_several_the_largest_goes_and_one_at_a_time() -> None:
    server = Server()
    assert server.until(61, w0=1100, w1=1300, w2=1200) == [(61.0, "w1")]
    server.replaced("w1")
    assert server.until(2, w0=1100, w1=100, w2=1200) == [(62.0, "w2"), (63.0, "w0")]


def test_a_worker_that_grows_again_and_again_is_replaced_more_and_more_seldom() -> None:
    server, at = Server(), []
    for _ in range(8):
        while not server.look(w0=1100):
            pass
        at.append(server.now)
        server.replaced("w0")
    gaps = [after - before for before, after in pairwise(at)]
    assert gaps == pytest.approx([120, 240, 480, 960, 1920, 3600, 3600], abs=LOOKS)


def test_a_long_quiet_time_makes_the_rests_short_again() -> None:
    server = Server()
    server.until(61, w0=1100)
    server.replaced("w0")
    assert server.until(300, w0=200) == []
    assert [name for _, name in server.until(LOOKS, w0=1100)] == ["w0"]
    server.replaced("w0")
    assert server.until(125, w0=1100)[0][0] == pytest.approx(server.now - 4, abs=LOOKS + 2)


@pytest.mark.parametrize("taken", [1001, 1090])
def test_models_that_do_not_fit_are_said_instead_of_started_again_for_ever(taken: int) -> None:
    server = Server()
    assert server.until(500, fresh=1000, w0=taken) == []
    assert "takes 1 GB when it is fresh" in server.ceiling.hopeless()
    assert "--max-memory" in server.ceiling.hopeless()
    server.look(fresh=1000, w0=900)
    assert server.ceiling.hopeless() == ""


def test_growth_beyond_models_that_do_not_fit_still_counts() -> None:
    assert Server().until(100, fresh=1000, w0=1101) == [(61.0, "w0")]


def test_a_slot_that_is_gone_is_forgotten() -> None:
    server = Server()
    server.until(59, w0=1100)
    server.look(w1=100)
    assert server.until(30, w0=1100) == [], "it rests anew"


@pytest.mark.parametrize(("text", "count"), [
    ("1GB", 10**9), ("1.5 GiB", 3 << 29), ("800mb", 800 * MB), ("65536", 65536), (" 64KiB ", 65536), ("0", 0),
])  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "GB", "1XB", "-1GB", "1e9", "1,5GB", "1GB 2MB", "1" * 13, "nan", "1.GB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--max-memory"):
        parse_size(text, where="--max-memory")


@pytest.mark.parametrize(
    ("count", "text"), [(1.5e9, "1.5 GB"), (64e6, "64 MB"), (999, "999 bytes"), (2e12, "2 TB")]
)
def test_sizes_are_said_in_words(count: float, text: str) -> None:
    assert said_size(count) == text
