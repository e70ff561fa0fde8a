"""The drawing of a graph: well-formed, nothing over anything, every edge there, nothing of it executable."""

from itertools import combinations, pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.registry.lineage.layout import HEIGHT, WIDTH, place
from loopwright.registry.lineage.page import page
from loopwright.registry.lineage.svg import COLOURS, draw

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def graphs(draw_: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    """Any graph, cycles and loose nodes included."""
    nodes = [f"n{number}" for number in range(draw_(st.integers(0, 25)))]
    some = st.sampled_from(nodes) if nodes else st.nothing()
    return nodes, draw_(st.lists(st.tuples(some, some), max_size=60)) if nodes else []


def overlapping(boxes: dict[str, tuple[float, float]]) -> list[tuple[str, str]]:
    return [
        (a, b)
        for (a, (x1, y1)), (b, (x2, y2)) in combinations(boxes.items(), 2)
        if abs(x1 - x2) < WIDTH and abs(y1 - y2) < HEIGHT
    ]


@given(graphs())
def test_no_two_boxes_overlap_and_every_edge_meets_its_boxes(
    graph: tuple[list[str], list[tuple[str, str]]],
) -> None:
    nodes, edges = graph
    placed = place(nodes, edges)
    boxes = dict(placed.boxes)
    assert set(boxes) == set(nodes)
    assert overlapping(boxes) == []
    assert set(placed.edges) == {(a, b) for a, b in edges if a != b}
    for x, y in boxes.values():
        assert 0 <= x <= placed.width - WIDTH and -1e-6 <= y <= placed.height - HEIGHT + 1e-6
    for (a, b), points in placed.edges.items():
        sides = {(key, x) for key in (a, b) for x in (boxes[key][0], boxes[key][0] + WIDTH)}
        assert (a, points[0][0]) in sides and (b, points[-1][0]) in sides
        assert points[0][1] == pytest.approx(boxes[a][1] + HEIGHT / 2)
        assert points[-1][1] == pytest.approx(boxes[b][1] + HEIGHT / 2)


@given(graphs())
def test_no_edge_runs_over_a_box(graph: tuple[list[str], list[tuple[str, str]]]) -> None:
    placed = place(*graph)
    for points in placed.edges.values():
        # Between columns there are no boxes; across a column an edge runs level, from one side to the other.
        for (x1, y1), (x2, y2) in zip(points[1:-1:2], points[2:-1:2], strict=True):
            assert y1 == y2 and abs(x1 - x2) == WIDTH
            for x, y in placed.boxes.values():
                assert x != min(x1, x2) or not y < y1 < y + HEIGHT


@given(graphs())
def test_the_same_graph_is_placed_the_same_way(graph: tuple[list[str], list[tuple[str, str]]]) -> None:
    assert place(*graph) == place(*graph)


def test_arrows_lead_to_the_right_unless_they_close_a_circle() -> None:
    placed = place(["a", "b", "c", "d"], [("a", "b"), ("b", "c"), ("a", "c"), ("c", "a"), ("c", "d")])
    x = {key: box[0] for key, box in placed.boxes.items()}
    assert x["a"] < x["b"] < x["c"] < x["d"]
    assert len(placed.edges["a", "c"]) == 4, "it passes b's column beside b"


def answer(nodes: list[dict[str, Any]], edges: list[tuple[str, str, str]], **more: Any) -> dict[str, Any]:
    return {
        "nodes": nodes,
        "edges": [{"from": a, "to": b, "kind": kind} for a, b, kind in edges],
        "focus": [nodes[0]["id"]],
        "says": ["It is said."],
        "folded": ["5 batches are one node"],
        **more,
    }


def boxes_of(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    found = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "node":
            x, y = group.attrib["transform"].removeprefix("translate(").rstrip(")").split(",")
            found[group.attrib["id"]] = (float(x), float(y))
    return found


def test_a_drawing_is_xml_with_a_box_per_node_and_a_path_per_edge() -> None:
    kinds = list(COLOURS)
    nodes = [{"id": f"{kind}:{n}", "kind": kind, "label": f"{kind} {n}"} for kind in kinds for n in range(6)]
    edges = [(f"{a}:{n}", f"{b}:{(n * 5) % 6}", "in") for a, b in pairwise(kinds) for n in range(6)]
    root = ElementTree.fromstring(draw(answer(nodes, edges), title="132 nodes"))
    boxes = boxes_of(root)
    assert set(boxes) == {node["id"] for node in nodes} and len(boxes) > 100
    assert overlapping(boxes) == []
    drawn = {
        (path.get("data-from"), path.get("data-to"))
        for path in root.iter(f"{SVG}path")
        if path.get("data-from")
    }
    assert drawn == {(a, b) for a, b, _ in edges}
    assert root.find(f"{SVG}title") is not None and "It is said." in str(root.findtext(f"{SVG}desc"))
    told = [group.findtext(f"{SVG}title") for group in root.iter(f"{SVG}g") if group.get("class") == "node"]
    assert all(told)


HOSTILE = '<script>alert("1")</script>\x00&\'"]]>'


def test_what_was_recorded_is_text_in_the_drawing_and_on_the_page() -> None:
    nodes: list[dict[str, Any]] = [
        {"id": "m/1", "kind": "version", "label": HOSTILE, "model": HOSTILE, "version": 1, "stage": HOSTILE,
         "live": True, "serving": [{"arm": HOSTILE, "weight": 1.0}], "author": HOSTILE},
        {"id": HOSTILE, "kind": HOSTILE, "label": HOSTILE, "reason": HOSTILE},
        {"id": "b", "kind": "batch", "label": HOSTILE, "table": HOSTILE, "uri": HOSTILE, "by": HOSTILE, "rows": 3},
        {"id": "r", "kind": "run", "label": HOSTILE, "actor": HOSTILE, "reason": HOSTILE},
        {"id": "feature:r/x", "kind": "feature", "label": HOSTILE, "view": HOSTILE, "level": "column", "sql": HOSTILE,
         "run": "r", "reads": [{"table": HOSTILE, "column": HOSTILE, "for": [HOSTILE]}]},
        {"id": "p", "kind": "promotion", "label": HOSTILE, "version": 1, "stage": HOSTILE, "requested_by": HOSTILE,
         "approved_by": [HOSTILE]},
    ]  # fmt: skip
    told = answer(
        nodes,
        [("m/1", HOSTILE, HOSTILE), ("r", "m/1", "registered as")],
        model=HOSTILE,
        version=1,
        says=[HOSTILE],
    )
    drawn = draw(told, title=HOSTILE)
    root = ElementTree.fromstring(drawn)
    assert not list(root.iter(f"{SVG}script"))
    written = page(told)
    for text in (drawn, written):
        assert "<script" not in text and "&lt;script&gt;" in text
    assert "http" not in written.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched"


def test_what_serves_and_what_is_folded_can_be_told_apart() -> None:
    nodes = [
        {"id": "m/1", "kind": "version", "label": "m 1", "stage": "Production", "live": True},
        {
            "id": "m/2",
            "kind": "version",
            "label": "m 2",
            "stage": "None",
            "serving": [{"arm": "shadow", "weight": 1}],
        },
        {
            "id": "batchs:1",
            "kind": "batch",
            "label": "900 batches",
            "count": 900,
            "folded": True,
            "members": ["x"],
        },
    ]
    root = ElementTree.fromstring(draw(answer(nodes, [("batchs:1", "m/1", "in")])))
    groups = {group.attrib["id"]: group for group in root.iter(f"{SVG}g") if group.get("class") == "node"}
    marks = {key: [c.get("fill") for c in group.iter(f"{SVG}circle")] for key, group in groups.items()}
    assert marks == {"m/1": ["#16a34a"], "m/2": ["none"], "batchs:1": []}
    sheets = {
        key: sum(r.get("class") == "box" for r in group.iter(f"{SVG}rect")) for key, group in groups.items()
    }
    assert sheets == {"m/1": 1, "m/2": 1, "batchs:1": 2}


def test_an_empty_graph_is_a_drawing_too() -> None:
    told = {"nodes": [], "edges": []}
    assert ElementTree.fromstring(draw(told)).tag == f"{SVG}svg"
