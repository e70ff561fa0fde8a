"""The page with pictures of features: whole, escaped, without scripts."""

from html.parser import HTMLParser

from loopwright.cli.feature_page import page

HARM = "<script>alert(1)</script>"


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or (value or "").startswith("http") for name, value in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def counted(feature: str, week: int, **changed: object) -> dict[str, object]:
    return {
        "feature": feature, "view": HARM, "source": "requests", "start": f"2026-03-0{week}T00:00:00Z",
        "end": f"2026-03-0{week + 1}T00:00:00Z", "rows": 100, "nulls": week, "null_rate": week / 100,
        "age_seconds": 7200.0, "distinct": 3, "minimum": 1.0, "maximum": 9.0, "mean": 4.0 + week, "deviation": 1.0,
        "infinite": 0, "top": [], "newest": None, **changed,
    }  # fmt: skip


def test_what_is_others_words_is_text() -> None:
    texts = {"minimum": None, "maximum": None, "mean": None, "top": [[HARM, 60]]}
    rule = {"feature": HARM, "source": "requests", "rule": "null rate", "found": "3 %", "wanted": "<= 1 %"}
    answer = {
        "model": HARM, "version": 1, "broken": [rule],
        "statistics": [counted("speed", 1), counted("speed", 2), counted(HARM, 1, **texts), counted(HARM, 2, **texts)],
    }  # fmt: skip
    reader = Reader()
    reader.feed(page(answer))
    assert "script" not in reader.tags
    assert reader.tags.count("svg") == 3  # two null rates, one range of values
    assert any(HARM in text for text in reader.texts)
    assert any("null rate 3 %, wanted <= 1 %" in text for text in reader.texts)
    assert "broken" in reader.texts


def test_nothing_known_draws_nothing_wrong() -> None:
    none = {"null_rate": None, "minimum": None, "maximum": None, "mean": None, "rows": 0, "distinct": 0}
    answer = {"model": "m", "version": None, "broken": [], "statistics": [counted("speed", 1, **none)]}
    reader = Reader()
    reader.feed(page(answer))
    assert "Every rule is kept in the newest window." in reader.texts
