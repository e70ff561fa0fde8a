import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loopwright.compression.candidate import Candidate, Status
from loopwright.compression.constraints import Constraints
from loopwright.compression.picture import html, png
from loopwright.compression.report import Gain, LadderReport, circumstances, closest, figures
from loopwright.kernel.errors import BadInput
from tests.unit.compression.candidates import measured, skipped

EVIL = '<script>alert(1)</script> & "INT8" | x'
WANTED = Constraints(1_200_000, 3.0, 0.01)


def report(*candidates: Candidate, chosen: str = "", wanted: Constraints = WANTED) -> LadderReport:
    return LadderReport(
        "reviews", "transformer", "accuracy", 1_000_000, 4_000_000, wanted,
        {"batch": 1, "threads": 2, "lengths": {"tokens": 32}}, candidates, chosen=chosen,
    )  # fmt: skip


SEVERAL = (
    measured("original", size=4_000_000, p50=8.0, half=0.0),
    measured("int8", size=1_100_000, p50=1.5, loss=-0.001),
    measured("fp16", size=2_000_000, p50=8.5, loss=0.0),
    measured("ruined", size=300_000, p50=0.5, loss=0.8, half=0.05),
    measured(EVIL, size=900_000, p50=9.0, loss=0.03),
)


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_but_itself_and_escapes_names() -> None:
    page = html(report(*SEVERAL, skipped("int4", EVIL), chosen="int8"))
    seen = Elements(page)

    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in seen.tags}
    assert not any(
        name.startswith("on") or name in ("src", "href") for _, attrs in seen.tags for name in attrs
    )
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert (
        "".join(seen.text).count(EVIL) >= 3
    )  # in the table, in the picture's title, and why int4 was skipped
    assert "misses size 3.33 times, latency 4 times; beaten by #2" in seen.text


def test_the_drawing_is_well_formed_and_has_every_model_in_both_panels() -> None:
    page = html(report(*SEVERAL, chosen="int8"))
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    space = "{http://www.w3.org/2000/svg}"

    titles = [one.text or "" for one in drawing.iter(f"{space}title")]
    for one in SEVERAL:
        assert sum(title.startswith(f"{one.name}:") for title in titles) == 2
    assert sum("chosen" in title for title in titles) == 2
    assert sum("beaten by int8" in title for title in titles if title.startswith("original")) == 2
    for circle in drawing.iter(f"{space}circle"):
        assert 0 < float(circle.attrib["cx"]) < float(drawing.attrib["viewBox"].split()[2])
        assert 0 < float(circle.attrib["cy"]) < float(drawing.attrib["viewBox"].split()[3])
    assert len([one for one in drawing.iter(f"{space}line") if one.get("class") == "want"]) == 4


def test_the_png_is_the_same_for_the_same_report_and_another_for_another() -> None:
    first = report(*SEVERAL, chosen="int8")
    drawn = png(first)
    assert drawn.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(drawn[16:20]) > 1000
    assert png(LadderReport.from_json(json.loads(json.dumps(first.to_json(), allow_nan=False)))) == drawn
    assert png(report(*SEVERAL[:3])) != drawn


@pytest.mark.parametrize("candidates", [(), (skipped("a"),), (measured("a", loss=0.0, half=0.0),)])
def test_few_or_no_figures_are_drawn_too(candidates: tuple[Candidate, ...]) -> None:
    few = report(*candidates, wanted=Constraints(None, None, 0.0))
    assert png(few).startswith(b"\x89PNG")
    assert ("<svg" in html(few)) == any(one.measured for one in candidates)


def test_a_name_is_not_taken_for_a_formula() -> None:
    assert png(replace(report(), subject=r"cost in $\frac$")) != png(report())


def test_a_report_survives_json_and_one_of_another_format_is_refused() -> None:
    first = replace(
        report(*SEVERAL, skipped("b"), chosen="int8"),
        gains=(Gain("int8", "fp16", "QAT", "accuracy", 0.01, -0.01, 0.03, 0.95, 500),), explored=True, seconds=3.5,
    )  # fmt: skip
    said = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert LadderReport.from_json(said) == first
    assert said["front"] == ["int8", "ruined", EVIL]
    assert said["dominated"]["original"] == ["int8"]
    assert said["gains"][0]["proven"] is False
    with pytest.raises(BadInput, match="not a report of this format"):
        LadderReport.from_json(said | {"format": 99})
    with pytest.raises(BadInput, match="missing or wrong parts"):
        LadderReport.from_json({k: v for k, v in said.items() if k != "kind"})


def test_tables_hold_what_was_measured_and_why_the_rest_was_not() -> None:
    told = report(*SEVERAL, skipped("int4", "too large | by far"), chosen="int8").to_markdown()
    rows = [line for line in told.splitlines() if line.startswith("|")]

    assert next(line for line in rows if line.startswith("| **int8** |")).endswith("| chosen; on the front |")
    assert "| int4 | skipped | too large \\| by far |" in rows
    assert "<script>" not in told
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows[: len(SEVERAL) + 2]}
    assert widths == {10}


def test_what_the_rows_and_the_machine_cannot_show_is_said() -> None:
    one = measured("int8", rows=300)
    assert one.latency is not None
    told = "\n".join(circumstances(report(one, wanted=Constraints(loss=0.005))))
    assert "may hide a loss of up to 0.99%" in told and "took the processor" not in told
    loaded = replace(one, latency=replace(one.latency, disturbed=0.05))
    told = "\n".join(circumstances(report(loaded, wanted=Constraints(loss=0.02))))
    assert "during up to 5% of the timed calls" in told and "may hide" not in told


def test_the_closest_is_the_one_whose_worst_miss_is_least() -> None:
    small = measured("small", size=1_000_000, p50=6.0, loss=0.0)  # p99 9 ms: 3 times
    fast = measured("fast", size=1_800_000, p50=1.0, loss=0.0)  # size 1.5 times
    poor = measured("poor", size=1_000_000, p50=1.0, loss=0.058)  # loss 6 times
    found = report(small, fast, poor, skipped("never"))

    assert closest(found.candidates, WANTED) is fast
    assert found.said() == ("none keeps to 1.2 MB, 3 ms, 1% loss; the closest, fast, misses size 1.5 times")
    (need,) = found.needed()
    assert (need.constraint, need.wanted, need.reached, need.by) == ("size", 1_200_000, 1_000_000, "small")
    assert need.within is not None and need.within_by == "fast" and need.within == 1_800_000
    assert "1.2M parameters at 8 bits or 2.4M at 4" in need.advice


def test_a_loss_within_the_limit_whose_bound_is_not_asks_for_rows() -> None:
    wide = measured("wide", loss=0.005, half=0.010, rows=400)
    (need,) = report(wide).needed()
    assert need.constraint == "loss" and need.reached == pytest.approx(0.015)
    assert "about 1600 validation rows instead of 400" in need.advice


def test_where_no_loss_is_allowed_json_still_holds() -> None:
    said = report(measured("a", loss=0.001), wanted=Constraints(None, None, 0.0)).to_json()
    assert said["misses"] == {"loss": None}
    assert "loss (above 0)" in said["said"]
    json.dumps(said, allow_nan=False)


def test_a_machine_on_which_the_parent_outran_itself_is_told_of() -> None:
    told = "beside itself, the parent came out at 1.60 times its speed"
    assert told in report(measured("original", p50=5.0, original_p50=8.0)).to_markdown()
    assert "beside itself" not in report(measured("original", p50=7.9, original_p50=8.0)).to_markdown()


def test_what_was_measured_is_told_in_one_line() -> None:
    assert figures(measured("a", size=1_000_000, p50=2.0, loss=0.004)) == (
        "1 MB (4 times smaller), p50 2 ms (4 times the parent's speed), loss 0.40%, at most 0.60%"
    )


def test_nothing_measured_is_said_so() -> None:
    failed = Candidate("a", "a", [], Status.FAILED, "it broke")
    assert report(failed).said() == "no candidate could be measured"
    assert report(failed).closest is None and report(failed).needed() == ()
