"""The model card: complete where there are records, honest where there are none, harmless whoever wrote into it."""

import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.bundle.manifest import FORMAT, Manifest
from loopwright.bundle.testing import TINY_SCHEMA
from loopwright.kernel.stage import Stage
from loopwright.kernel.verdict import Verdict
from loopwright.registry.documents.card import build_card
from loopwright.registry.documents.facts import Facts
from loopwright.registry.documents.html import prose, to_html
from loopwright.registry.documents.layout import lay_out
from loopwright.registry.documents.markdown import neutral, to_markdown
from loopwright.registry.documents.schema import CARD_SCHEMA
from loopwright.registry.policy import Policy, Promotion
from loopwright.registry.records import Approval, Evidence, Version

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)
BUNDLE = "a" * 64
SAID = "Planners hold gates and crews with it, an hour before the departure."
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>[a](javascript:alert(3))'


def version(**changes: Any) -> Version:
    known: dict[str, Any] = {
        "model": "late", "version": 1, "bundle": None, "run_id": None, "snapshot": None, "semver": None,
        "stage": Stage.NONE, "author": "ana", "created_at": NOON, "parent": None,
    }  # fmt: skip
    return Version(**{**known, **changes})


def evidence(
    kind: str, payload: dict[str, Any], verdict: Verdict = Verdict.PASS, at: datetime = NOON
) -> Evidence:
    return Evidence(f"{len(kind):064x}", kind, "late", 1, BUNDLE, verdict, payload, at)


def compression(text: str) -> dict[str, Any]:
    """The evidence of a version that was made from version 3."""
    loss = {
        "metric": text,
        "loss": 0.002,
        "loss_low": -0.001,
        "loss_high": 0.006,
        "confidence": 0.95,
        "rows": 900,
    }
    return {
        "parent": 3, "parent_bundle": "5" * 64, "run": text, "trained_in": text, "name": text,
        "recipe": [{"step": text, "bits": 4, "keep": None}], "size": 25_000, "original_size": 100_000,
        "latency": {"p50": 0.1, "p99": 0.2, "original_p50": 0.3, "original_p99": 0.4, "batch": 1, "threads": 1},
        "validation": loss, "test": loss, "agreement": {"argmax": 0.99, "cosine": None, "largest": 0.04},
        "controls": [text], "wanted": {"size": 30_000, "latency_ms": None, "loss": 0.01},
    }  # fmt: skip


def full(text: str = SAID, name: str = "late", **changes: Any) -> Facts:
    """A version about which everything is recorded, with `text` wherever somebody can write."""
    result = {"name": text, "kind": "metric", "verdict": "PASS", "value": 0.75, "limit": text, "detail": text}
    gates = [
        result,
        {**result, "kind": "comparison", "value": 0.01, "interval": [0.0, 0.02], "limit": "gain >= -0.005"},
        {**result, "kind": "behaviour"},
    ]
    group = {
        "group": text,
        "rows": 100,
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "adjusted": 0.01,
        "differs": True,
    }
    fairness = {
        "metric": text, "max_gap": 0.2, "min_group": 100, "confidence": 0.95, "correction": text, "model": "late",
        "attributes": [{"attribute": text, "verdict": "PASS", "why": text, "metrics": [
            {"metric": text, "judged": True, "overall": 0.2, "groups": [group, {**group, "group": "b", "value": None,
             "low": None, "high": None}]}]}],
    }  # fmt: skip
    explained = {"method": text, "rows": 10, "features": [{"name": text, "mean_abs_shap": 0.4}], "base": 0.0}
    sections = dict.fromkeys(("intended_use", "limitations", "training_data", "risks"), text)
    found = (
        evidence("gates", {"rows": 500, "baseline": "b" * 64, "results": gates}),
        evidence("fairness", fairness),
        evidence("explainability", explained),
        evidence("compression", compression(text)),
        evidence(
            "card", {"file": text, "digest": "c" * 64, "by": text, "sections": {**sections, "licence": text}}
        ),
    )
    asked = Promotion(
        "pr_1", name, 1, Stage.PRODUCTION, BUNDLE, text, NOON, text, "effective", NOON, Policy(), "d" * 64,
        (Approval(text, "approve", text, NOON, BUNDLE),), text,
    )  # fmt: skip
    window = {"start": "2013-07-01T00:00:00Z", "end": "2013-07-08T00:00:00Z", "verdict": "PASS"}
    facts: dict[str, Any] = {
        "version": version(
            model=name, bundle=BUNDLE, run_id="r1", snapshot="e" * 64, semver="1.0.0", stage=Stage.PRODUCTION,
            author=text, metrics={text: 0.75}, annotations={text: text, "semver_reason": text},
        ),
        "now": NOON,
        "manifest": Manifest(
            format=FORMAT, model="late", created_at="2013-07-01T00:00:00Z", files={"model.onnx": "f" * 64},
            schema=TINY_SCHEMA,
            provenance={
                "run_id": "r1", "seed": 7, "params": {text: text}, "split_sizes": {"train": 10}, "algorithm": text,
                "trained_from": "2013-01-01T00:00:00Z", "trained_until": "2013-06-01T00:00:00Z",
            },
        ),
        "evidence": found,
        "promotions": (asked,),
        "spec": {"owner": text, "team": text, "project": text, "task": "binary", "tags": {text: text},
                 "data": {"sources": {"flights": {"uri": text}}, "label": {"name": text, "available_after": "6h"}}},
        "run": {"run_id": "r1", "started_at": "2013-07-01T00:00:00Z", "ended_at": None, "actor": text, "reason": text,
                "params": {text: text},
                "context": {"code": {"digest": "1" * 64, "git": {"commit": text, "dirty": False}},
                            "environment": {"python": text, "platform": text, "packages": ["numpy==2.0"]},
                            "hardware": {"cpu": text, "cores": 2, "gpus": [text]}, "command": [text]}},
        "snapshot": {"tables": {"flights": {"rows": 10, "version": 0, "content_digest": "2" * 64}}},
        "landed": {"flights": [{"contract_digest": "3" * 64, "input_rows": 10, "good_rows": 9, "bad_rows": 1,
                                "rules": [{"name": text, "state": "FAIL", "severity": text, "failed": 1}]}]},
        "rollouts": [{"id": "ro_1", "strategy": "canary", "status": "completed", "baseline": None, "reason": text,
                      "started_at": "2013-07-01T00:00:00Z", "ended_at": None,
                      "events": [{"at": "2013-07-01T00:00:00Z", "event_time": None, "kind": text,
                                  "payload": {"why": text, "to": text}}]}],
        "windows": [
            {"kind": "drift", **window, "payload": {"columns": {text: {"column": text, "verdict": "FAIL",
                                                                        "corrected": 0.3}}}},
            {"kind": "quality", **window, "payload": {"metric": text, "value": 0.7, "low": 0.6, "high": 0.8,
                                                       "limit": 0.65, "expected": 0.75, "labelled": 900}},
        ],
        "alerts": [{"tier": "P2", "kind": "drift", "title": text, "state": "open", "by": text,
                    "event_time": "2013-07-01T00:00:00Z", "opened_at": "2013-07-01T00:00:00Z"}],
        "serving": True,
        "policy": {**Policy().to_json(), "digest": "4" * 64},
        "missing": {"Production": (text,)},
        "sections": ("intended_use", "risks"),
        "reviews": {"pr_1": {"state": "upheld", "due_at": "2013-07-04T00:00:00Z", "reviewer": text, "comment": text}},
    }  # fmt: skip
    return Facts(**{**facts, **changes})


def check(card: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(CARD_SCHEMA, format_checker=jsonschema.FormatChecker())
    assert [f"{e.json_path}: {e.message}" for e in validator.iter_errors(json.loads(json.dumps(card)))] == []


class Reader(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "hr", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def harmless(page: str) -> Reader:
    read = Reader(page)
    assert read.tags.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "base", "link"})
    for tag, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src", "xlink:href", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "http://", "https://", "mailto:")), (tag, target)
    return read


def test_nothing_recorded_gives_a_card_of_gaps() -> None:
    card = build_card(Facts(version=version(), now=NOON))
    check(card)
    about = {gap["about"] for gap in card["gaps"]}
    assert about == {
        "bundle",
        "card",
        "identity",
        "data",
        "training",
        "quality",
        "fairness",
        "explainability",
    }
    for text in (to_markdown(lay_out(card)), to_html(lay_out(card))):
        assert "not recorded" in text and "no gate has judged these bytes" in text and "never gated" in text


def test_everything_recorded_leaves_no_gap() -> None:
    card = build_card(full())
    check(card)
    assert card["gaps"] == []
    assert card["quality"]["comparison"]["interval"] == [0.0, 0.02]
    assert card["governance"]["promotions"][0]["review"]["state"] == "upheld"
    assert (
        card["identity"]["semver_reason"] == SAID and "semver_reason" not in card["identity"]["annotations"]
    )


def test_a_section_that_the_policy_wants_and_nobody_wrote_is_a_gap() -> None:
    said = evidence(
        "card", {"file": "c", "digest": "c" * 64, "sections": {"intended_use": SAID}, "unfilled": ["risks"]}
    )
    card = build_card(full(evidence=(said,)))
    gaps = [gap["what"] for gap in card["gaps"] if gap["about"] == "card"]
    assert "Risks: nothing is written; the policy requires it" in gaps
    assert "Limitations: nothing is written" in gaps
    assert not [gap for gap in gaps if gap.startswith("Intended use")]


def test_evidence_for_other_bytes_does_not_count() -> None:
    other = Evidence("9" * 64, "gates", "late", 1, "b" * 64, Verdict.PASS, {"results": []}, NOON)
    card = build_card(full(evidence=(other,)))
    assert card["quality"]["gates"] is None and any(gap["about"] == "quality" for gap in card["gaps"])


def test_the_newest_evidence_counts_and_all_is_listed() -> None:
    later = NOON.replace(hour=13)
    found = (*full().evidence, evidence("gates", {"rows": 1, "results": []}, Verdict.FAIL, later))
    card = build_card(full(evidence=found))
    assert card["quality"]["gates"]["verdict"] == "FAIL"
    assert [e["kind"] for e in card["evidence"]].count("gates") == 2


def test_an_open_review_of_an_emergency_is_a_gap() -> None:
    reviews = {"pr_1": {"state": "open", "due_at": "2013-07-04T00:00:00Z"}}
    card = build_card(full(reviews=reviews))
    assert [gap["about"] for gap in card["gaps"]] == ["governance"]
    assert "the glass was broken" in to_html(lay_out(card))


def test_a_compressed_version_says_from_what_how_and_at_what_loss() -> None:
    card = build_card(full())
    check(card)
    page = to_markdown(lay_out(card))
    assert "Compressed from version 3" in page and "100 kB → 25 kB, 4.00 times smaller" in page
    assert "p50 0.3 → 0.1 ms, p99 0.4 → 0.2 ms, batch 1, threads 1" in page
    assert "0.20%" in page and "-0.10% to 0.60%" in page and "size 30 kB, loss 1.00%" in page
    others = [item for item in full().evidence if item.kind != "compression"]
    assert "Compressed" not in to_markdown(lay_out(build_card(full(evidence=others))))


def test_a_model_nobody_could_explain_says_why() -> None:
    found = (*full().evidence[:2], evidence("explainability", {"why": "no such engine"}, Verdict.ERROR))
    card = build_card(full(evidence=found))
    check(card)
    assert "could not be explained: no such engine" in to_markdown(lay_out(card))


def test_the_page_is_one_file_with_its_pictures_and_balanced_elements() -> None:
    page = to_html(lay_out(build_card(full())))
    read = harmless(page)
    assert read.unbalanced == [] and read.open == []
    assert [tag for tag, _ in read.elements].count("svg") == 4
    policy = [attributes["content"] for _, attributes in read.elements if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert "prefers-color-scheme:dark" in page and "@media print" in page
    assert {"h1", "h2", "table", "nav"} <= read.tags and SAID in read.text


def test_nobody_writes_code_into_a_card() -> None:
    card = build_card(full(EVIL, name=EVIL))
    check(card)
    read = harmless(to_html(lay_out(card)))
    assert read.unbalanced == [] and read.open == []
    assert "<script>alert(1)</script>" in read.text, "it is shown, as text"


def test_nobody_writes_html_or_scripts_into_the_markdown() -> None:
    from markdown_it import MarkdownIt

    text = to_markdown(lay_out(build_card(full(EVIL, name=EVIL))))
    # As the most trusting renderer would show it: raw HTML on.
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    harmless(rendered)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))", "[x](data:text/html;base64,PHNjcmlwdD4=)", "![x](https://example.com/a.png)",
        "<a href='javascript:alert(1)'>x</a>", "[x]: javascript:alert(1)\n\n[x]", "<javascript:alert(1)>",
        "[x](java\nscript:alert(1))", "[x](vbscript:x)", "<svg/onload=alert(1)>", "`<b>`", "[x](//evil.example)",
        "[x](&#106;avascript:alert(1))", "<!-- --><b>", "</div></main><h1>Gates PASS</h1>",
    ],
)  # fmt: skip
def test_prose_can_do_nothing_but_be_read(text: str) -> None:
    read = harmless(prose(text))
    assert read.unbalanced == [] and "h1" not in read.tags


def test_links_to_pages_and_mail_stay_links() -> None:
    page = prose("[docs](https://example.com) and [mail](mailto:a@example.com)")
    links = [attributes for tag, attributes in Reader(page).elements if tag == "a"]
    assert [link["href"] for link in links] == ["https://example.com", "mailto:a@example.com"]
    assert all(link["rel"] == "noopener noreferrer nofollow" for link in links)


def test_headings_of_theirs_stand_below_ours() -> None:
    assert Reader(prose("# Gates\n\n## PASS")).tags == {"h4", "h5"}
    assert neutral("# Gates\n## PASS") == "#### Gates\n##### PASS"
    assert neutral("```\n# kept\n```") == "```\n# kept\n```"
    assert "\n\\===" in neutral("Gates\n===")
    assert neutral("~~~\nopen").endswith("~~~"), "a fence left open would swallow the rest of the card"


@given(text=st.text(max_size=300))
def test_any_text_is_shown_harmlessly(text: str) -> None:
    assert harmless(prose(text)).unbalanced == []


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    low=st.floats(-1e6, 1e6),
    high=st.floats(-1e6, 1e6),
)
def test_pictures_take_any_figures(value: float, low: float, high: float) -> None:
    window = {
        "start": "2013-07-01",
        "value": value,
        "low": low,
        "high": high,
        "verdict": "PASS",
        "metric": "m",
    }
    from loopwright.registry.documents import pictures

    for picture in (
        pictures.over_time([window, window]),
        pictures.gain(low, [low, high], "gain >= -0.005", "PASS"),
        pictures.bars("x", [("a", low), ("b", high)]),
        pictures.groups("x", [{"group": "g", "rows": 1, **window}], low),
        pictures.over_time([]),
    ):
        assert "nan" not in picture and "inf" not in picture.replace("info", "")
        assert Reader(picture).unbalanced == []
