"""The order and the words of a model card, once for Markdown and HTML. Pure: card JSON in, blocks out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loopwright.kernel.sizes import said_size
from loopwright.registry.documents import pictures
from loopwright.registry.documents.blocks import (
    NOTHING,
    Block,
    Cell,
    Code,
    Mark,
    Page,
    Pairs,
    Part,
    Picture,
    Prose,
    Said,
    Table,
    Tile,
    day_of,
    percent,
    signed,
    span_of,
    text_of,
    time_of,
    whole,
)

Json = Mapping[str, Any]


def lay_out(card: Json) -> Page:
    """Arrange the card for a reader who decides: answers first, then what people say, then the evidence."""
    identity = card["identity"]
    number = f" {identity['semver']}" if identity["semver"] else ""
    return Page(
        title=f"{identity['model']}{number}",
        subtitle=f"Model card of version {identity['version']}, generated {time_of(card['generated_at'])} from the "
        "records of its home. People wrote only what is marked so.",
        tiles=tuple(_tiles(card)),
        parts=tuple(_parts(card)),
    )


def _parts(card: Json) -> Iterator[Part]:
    yield Part("Known gaps", tuple(_gaps(card)))
    yield Part("Identity", (Pairs(tuple(_identity(card))),))
    written = card["written"]
    if written["at"]:
        by = f" by {written['by']}" if written["by"] else ""
        head = f"Written by people, recorded {time_of(written['at'])}{by} from {written['file'] or 'a file'}."
    else:
        head = "Nobody has written about this version."
    yield Part("What people say", (Said(head),))
    for section in written["sections"]:
        if section["text"]:
            short = () if section["filled"] else (
                Said("This does not count as filled: too short, or placeholders.", "warn"),
            )  # fmt: skip
            yield Part(section["title"], (Prose(section["text"]), *short), 3, human=True)
        else:
            yield Part(section["title"], (Said(_unwritten(section), "warn"),), 3)
    yield Part("Data", tuple(_data(card)))
    yield Part("Training", tuple(_training(card)))
    if card["compression"] is not None:
        parent = card["compression"]["parent"]
        yield Part(f"Compressed from version {parent}", tuple(_compression(card["compression"])))
    yield Part("Quality", tuple(_quality(card)))
    yield Part(
        "Behaviour", tuple(_results(card["quality"]["behaviour"], "No behaviour was checked.", "check"))
    )
    yield Part("Fairness", tuple(_fairness(card)))
    yield Part("What the answers rest on", tuple(_explained(card)))
    yield Part("Governance", tuple(_governance(card)))
    yield Part("Delivery", tuple(_delivery(card)))
    yield Part("Monitoring", tuple(_monitoring(card)))
    yield Part("Interface", tuple(_interface(card)))
    yield Part("Evidence", tuple(_evidence(card)))


def _tiles(card: Json) -> Iterator[Tile]:
    quality, governance = card["quality"], card["governance"]
    gates, compared = quality["gates"], quality["comparison"]
    if gates:
        results = [*gates["results"], *quality["behaviour"], *([compared] if compared else [])]
        passed = sum(r["verdict"] == "PASS" for r in results)
        yield Tile("Gates", gates["verdict"], f"{passed} of {len(results)} passed")
    else:
        yield Tile("Gates", NOTHING, "no gate has judged these bytes")
    if compared and compared["kind"] == "comparison":
        yield Tile("Against the version before", compared["verdict"], f"gain {signed(compared['value'])}")
    elif compared:
        yield Tile("Against the version before", "none", "the first model")
    else:
        yield Tile("Against the version before", NOTHING, "")
    fairness = card["fairness"]
    detail = (
        "" if not fairness else "stated as not applicable" if fairness["not_applicable"] else _worst(fairness)
    )
    yield Tile("Fairness", fairness["verdict"] if fairness else NOTHING, detail)
    sections = [s for s in card["written"]["sections"] if s["name"] not in ("summary", "licence", "contact")]
    filled = sum(s["filled"] for s in sections)
    state = "filled" if sections and filled == len(sections) else "open"
    yield Tile("Written by people", state, f"{filled} of {len(sections)} sections")
    yield _approvals(governance, card["identity"]["stage"])
    judged = card["monitoring"]["quality"] or card["monitoring"]["drift"]
    if judged:
        yield Tile("Live", judged[-1]["verdict"], f"window from {day_of(judged[-1]['start'])}")
    else:
        yield Tile("Live", NOTHING, "no window has been judged")
    gaps = len(card["gaps"])
    yield Tile(
        "Known gaps", "open" if gaps else "none", f"{gaps} listed below" if gaps else "nothing is missing"
    )


def _approvals(governance: Json, stage: str) -> Tile:
    asked = [p for p in governance["promotions"] if p["stage"] == "Production"]
    if not asked:
        return Tile("Approvals for Production", "none", "nobody has asked")
    last = asked[-1]
    yes = sum(a["decision"] == "approve" for a in last["approvals"])
    if last["emergency"]:
        review = (last["review"] or {}).get("state", "open")
        return Tile("Approvals for Production", "emergency", f"the glass was broken; review {review}")
    needed = governance["approvals_needed"].get("production")
    return Tile(
        "Approvals for Production",
        last["state"],
        f"{yes} of {needed}" if needed is not None else f"{yes} given",
    )


def _worst(fairness: Json) -> str:
    attributes = (fairness["report"] or {}).get("attributes") or []
    return ", ".join(f"{each['attribute']} {each['verdict']}" for each in attributes[:3])


def _unwritten(section: Json) -> str:
    return "Nothing is written." + (" The policy requires this section." if section["required"] else "")


def _gaps(card: Json) -> Iterator[Block]:
    if not card["gaps"]:
        yield Said("Everything this card asks for is recorded.")
        return
    yield Said("What is not recorded is listed, never hidden.")
    yield Table(
        ("about", "what is missing", "how it comes to be there"),
        tuple((gap["about"], gap["what"], gap["next"] or "–") for gap in card["gaps"]),
    )


def _identity(card: Json) -> Iterator[tuple[str, Cell]]:
    one = card["identity"]
    yield "Model", one["model"]
    reason = f" – {one['semver_reason']}" if one["semver_reason"] else ""
    yield "Version", f"{one['version']}" + (f", semantic {one['semver']}{reason}" if one["semver"] else "")
    yield "Stage", Mark(one["stage"])
    yield "Answers live traffic", None if one["serving"] is None else "yes" if one["serving"] else "no"
    yield "Task", one["task"]
    yield (
        "Bundle (SHA-256)",
        Code(one["bundle"], 64) if one["bundle"] else "none: registered by a plain MLflow client",
    )
    yield "Owner", one["owner"]
    yield "Team, project", ", ".join(filter(None, (one["team"], one["project"]))) or None
    yield "Author", one["author"]
    yield "Registered", time_of(one["registered_at"])
    yield "Follows", "nothing: the first model" if one["parent"] is None else f"version {one['parent']}"
    yield "Licence", (one["licence"] or "").split("\n")[0][:100] or None
    yield "Software bill of materials", Code(card["sbom"]["serial_number"], 64) if card["sbom"] else None
    yield from ((f"Tag {key}", value) for key, value in sorted(one["tags"].items()))
    yield from ((f"Note {key}", value) for key, value in sorted(one["annotations"].items()))


def _data(card: Json) -> Iterator[Block]:
    data = card["data"]
    when, label = data["event_time"], data["label"]
    span = f"{day_of(when['from'])} to {day_of(when['until'])}" if when["from"] and when["until"] else None
    late = f", known {label['available_after']} later at the earliest" if label["available_after"] else ""
    yield Pairs((
        ("Snapshot", Code(data["snapshot"], 64) if data["snapshot"] else None),
        ("Rows", whole(data["rows"])),
        ("Trained on events", span),
        ("As of", time_of(when["as_of"]) if when["as_of"] else "everything the snapshot held"),
        ("Label", label["name"] + late if label["name"] else None),
        ("Split", ", ".join(f"{name} {whole(rows)}" for name, rows in data["split"].items()) or None),
    ))  # fmt: skip
    yield Table(
        ("table", "source", "rows", "version", "content", "contract", "set aside"),
        tuple(
            (t["name"], t["source"], whole(t["rows"]), text_of(t["table_version"]),
             Code(t["content_digest"]) if t["content_digest"] else None, *_contract(t["contract"]))
            for t in data["tables"]
        ),
        empty="No table is recorded.",
    )  # fmt: skip
    broken = [(t["name"], rule) for t in data["tables"] for rule in (t["contract"] or {}).get("broken", ())]
    if broken:
        yield Said("Rules that rows broke, in the newest batch of each table:")
        yield Table(
            ("table", "rule", "severity", "result", "rows"),
            tuple(
                (name, r["name"], r["severity"], Mark(r["state"] or "?"), whole(r["rows"]))
                for name, r in broken[:40]
            ),
        )


def _contract(found: Json | None) -> tuple[Cell, Cell]:
    if found is None:
        return None, None
    held = found["rules"] - len(found["broken"])
    aside = f"{whole(found['bad_rows'])} of {whole(found['input_rows'])}"
    return f"{held} of {found['rules']} rules hold", aside


def _training(card: Json) -> Iterator[Block]:
    run = card["training"]
    if run is None:
        yield Said("No training run is recorded.", "warn")
        return
    memory = f"{run['memory_bytes'] / 2**30:.0f} GiB" if run["memory_bytes"] else None
    machine = [run["processor"], f"{run['cores']} cores" if run["cores"] else None, memory, *run["gpus"]]
    code = (
        "with uncommitted changes, kept as a private commit"
        if run["kept_commit"]
        else "with uncommitted changes"
    )
    yield Pairs((
        ("Run", Code(run["run_id"], 64) if run["run_id"] else None),
        ("By", run["by"]),
        ("Why", run["reason"]),
        ("When", f"{time_of(run['started_at'])} to {time_of(run['ended_at'])}" if run["started_at"] else None),
        ("Commit", Code(run["commit"], 40) if run["commit"] else None),
        ("Working tree", None if run["dirty"] is None else code if run["dirty"] else "clean"),
        ("Code (SHA-256)", Code(run["code_digest"], 64) if run["code_digest"] else None),
        ("Algorithm", run["algorithm"]),
        ("Seed", text_of(run["seed"])),
        ("Python", run["python"]),
        ("Platform", run["platform"]),
        ("Packages", f"{run['packages']} installed, all in the SBOM" if run["packages"] else None),
        ("Machine", ", ".join(filter(None, machine)) or None),
        ("Command", " ".join(run["command"]) or None),
    ))  # fmt: skip
    yield Table(
        ("parameter", "value"),
        tuple((name, text_of(value)) for name, value in sorted(run["parameters"].items())),
        empty="No parameters are recorded.",
    )


def _compression(found: Json) -> Iterator[Block]:
    def said(step: Json) -> str:
        settings = (f"{name}={text_of(v)}" for name, v in step.items() if name != "step" and v is not None)
        return f"{step.get('step')}({', '.join(settings)})"

    latency, alike, wanted = found["latency"], found["agreement"], found["wanted"]
    smaller = (
        f"{said_size(found['original_size'])} → {said_size(found['size'])}, "
        f"{found['original_size'] / found['size']:.2f} times smaller"
        if found["size"] and found["original_size"]
        else None
    )
    faster = (
        f"p50 {latency['original_p50']:.3g} → {latency['p50']:.3g} ms, p99 {latency['original_p99']:.3g} → "
        f"{latency['p99']:.3g} ms, batch {latency['batch']}, threads {latency['threads']}"
        if all(latency[name] is not None for name in ("p50", "p99", "original_p50", "original_p99"))
        else None
    )
    asked = [f"size {said_size(wanted['size'])}"] if wanted["size"] is not None else []
    asked += [f"p99 {wanted['latency_ms']:g} ms"] if wanted["latency_ms"] is not None else []
    asked += [f"loss {wanted['loss']:.2%}"] if wanted["loss"] is not None else []
    yield Pairs((
        ("Recipe", " → ".join(map(said, found["recipe"])) or None),
        ("Asked, at most", ", ".join(asked) or None),
        ("Parent bundle", Code(found["parent_bundle"], 64) if found["parent_bundle"] else None),
        ("Weights from run", Code(found["trained_in"], 64) if found["trained_in"] else None),
        ("Compressed in run", Code(found["run"], 64) if found["run"] else None),
        ("Size on disk", smaller),
        ("Latency beside the parent", faster),
        ("Same class as the parent", percent(alike["argmax"]) if alike["argmax"] is not None else None),
        ("Largest difference of an answer", text_of(alike["largest"])),
    ))  # fmt: skip
    yield Table(
        ("loss against the parent", "metric", "loss", "interval", "rows"),
        tuple(
            (
                {"validation": "validation, which chose", "test": "held-out rows that chose nothing"}[part],
                one["metric"], f"{one['loss']:.2%}", f"{one['loss_low']:.2%} to {one['loss_high']:.2%}",
                whole(one["rows"]),
            )
            for part, one in found["loss"].items()
            if None not in (one["loss"], one["loss_low"], one["loss_high"])
        ),
        empty="No loss is recorded.",
    )  # fmt: skip
    for control in found["controls"]:
        yield Said(f"Control: {control}.")


def _quality(card: Json) -> Iterator[Block]:
    quality = card["quality"]
    yield Table(
        ("metric on held-out rows", "value"),
        tuple((name, text_of(value)) for name, value in sorted(quality["metrics"].items())),
        empty="No metric is recorded.",
    )
    compared = quality["comparison"]
    if compared and compared.get("interval") and compared["value"] is not None:
        yield Picture(
            pictures.gain(compared["value"], compared["interval"], compared["limit"], compared["verdict"])
        )
    gates = quality["gates"]
    if gates is None:
        yield Said("No gate has judged these bytes.", "warn")
        return
    against = f", against the bundle {gates['baseline'][:12]}" if gates["baseline"] else ""
    yield Said(f"Gates on {whole(gates['rows'])} held-out rows, {time_of(gates['at'])}{against}.")
    yield from _results([*gates["results"], *([compared] if compared else [])], "No gate ran.")


def _results(results: Sequence[Json], empty: str, what: str = "gate") -> Iterator[Block]:
    rows = tuple((r["name"], Mark(r["verdict"]), r["limit"] or "–", r["detail"]) for r in results)
    yield Table((what, "verdict", "asked", "found"), rows, empty)


def _fairness(card: Json) -> Iterator[Block]:
    found = card["fairness"]
    if found is None:
        yield Said("No fairness report is recorded.", "warn")
        return
    if found["not_applicable"]:
        yield Said("The project states that fairness between groups does not apply:")
        yield Prose(str(found["not_applicable"]))
        return
    report = found["report"] or {}
    yield Said(
        f"{report.get('metric', 'The metric')} may differ by at most {text_of(report.get('max_gap'))} between any two "
        f"groups of at least {text_of(report.get('min_group'))} rows; intervals at {percent(report.get('confidence'))} "
        f"confidence, p-values adjusted ({report.get('correction', 'for the number of groups')})."
    )
    for each in report.get("attributes") or ():
        yield Pairs(((f"By {each['attribute']}", Mark(each["verdict"])), ("Why", each.get("why"))))
        judged = [m for m in each.get("metrics") or () if m.get("judged")]
        for metric in judged or (each.get("metrics") or ())[:1]:
            groups = metric.get("groups") or ()
            if groups:
                yield Picture(
                    pictures.groups(
                        f"{metric['metric']} by {each['attribute']}", groups, metric.get("overall")
                    )
                )
            yield Table(
                (f"{metric['metric']} by {each['attribute']}", "rows", "value", "interval", "adjusted p"),
                tuple(
                    (str(g["group"]), whole(g["rows"]), text_of(g["value"]), span_of(g), text_of(g.get("adjusted")))
                    for g in groups
                ),
                empty="No group is large enough to judge.",
            )  # fmt: skip


def _explained(card: Json) -> Iterator[Block]:
    found = card["explainability"]
    if found is None:
        yield Said("What the answers rest on has not been explained.", "warn")
        return
    if found["why"]:
        yield Said(f"The answers could not be explained: {found['why']}.", "warn")
        return
    top = sorted(found["features"], key=lambda f: -abs(f.get("mean_abs_shap") or 0.0))[:15]
    yield Said(
        f"Mean absolute contribution to the answer ({found['method'] or 'SHAP'}) over {whole(found['rows'])} rows."
    )
    if top:
        yield Picture(
            pictures.bars(
                "Contribution by feature", [(f["name"], f.get("mean_abs_shap") or 0.0) for f in top]
            )
        )
    yield Table(
        ("feature", "mean absolute contribution"),
        tuple((f["name"], text_of(f.get("mean_abs_shap"))) for f in top),
        empty="No feature is listed.",
    )


def _governance(card: Json) -> Iterator[Block]:
    one = card["governance"]
    needed = ", ".join(f"{stage} {count}" for stage, count in sorted(one["approvals_needed"].items()))
    evidence = "; ".join(
        f"{stage}: {', '.join(kinds)}" for stage, kinds in sorted(one["evidence_needed"].items())
    )
    yield Pairs((
        ("Tier", one["tier"]),
        ("Policy (SHA-256)", Code(one["policy_digest"], 64) if one["policy_digest"] else None),
        ("Approvals needed", needed or None),
        ("Evidence needed", evidence or None),
        *((f"Lacks for {stage}", "; ".join(lacks) or "nothing") for stage, lacks in sorted(one["missing"].items())),
    ))  # fmt: skip
    for p in one["promotions"]:
        decided = f", {p['state']} {time_of(p['decided_at'])}" if p["decided_at"] else f", {p['state']}"
        yield Said(f"Promotion to {p['stage']}: asked by {p['requested_by']} {time_of(p['requested_at'])}{decided}. "
                   f"Reason: {p['reason'] or 'none given'}. Policy {p['policy_digest'][:12]}.")  # fmt: skip
        if p["emergency"]:
            review = p["review"] or {}
            who = f" by {review['reviewer']}" if review.get("reviewer") else ""
            word = f": {review['comment']}" if review.get("comment") else ""
            state = review.get("state", "not recorded")
            yield Said(
                f"Emergency: the glass was broken. {p['emergency']}. Review {state}{who}{word}", "warn"
            )
        yield Table(
            ("who", "said", "when", "comment"),
            tuple(
                (a["reviewer"], Mark(a["decision"]), time_of(a["at"]),
                 (a["comment"] or "–") + ("" if a["these_bytes"] else " (for other bytes)"))
                for a in p["approvals"]
            ),
            empty="Nobody has spoken on it.",
        )  # fmt: skip
    if not one["promotions"]:
        yield Said("Nobody has asked for a promotion.")


def _delivery(card: Json) -> Iterator[Block]:
    if not card["delivery"]:
        yield Said("It has not been brought to traffic.")
    for rollout in card["delivery"]:
        against = f" against version {rollout['baseline']}" if rollout["baseline"] is not None else ""
        yield Pairs((
            ("Rollout", f"{rollout['strategy']}{against}, begun {time_of(rollout['started_at'])}"),
            ("State", Mark(rollout["status"] or "?")),
            ("Judgement", rollout["reason"]),
        ))  # fmt: skip
        yield Table(
            ("event time", "from", "to", "why"),
            tuple(
                (time_of(s["event_time"] or s["at"]), s["from"] or "–", s["to"] or s["kind"], s["why"] or "–")
                for s in rollout["steps"]
            ),
            empty="No step is recorded.",
        )


def _monitoring(card: Json) -> Iterator[Block]:
    one = card["monitoring"]
    if one["quality"]:
        yield Picture(pictures.over_time(one["quality"]))
    yield Table(
        ("quality from", "until", "verdict", "metric", "value", "interval", "limit", "labels"),
        tuple(
            (day_of(w["start"]), day_of(w["end"]), Mark(w["verdict"]), w["metric"], text_of(w["value"]),
             span_of(w), text_of(w["limit"]), whole(w["labelled"]))
            for w in one["quality"][-12:]
        ),
        empty="Quality on live traffic has not been judged.",
    )  # fmt: skip
    yield Table(
        ("drift from", "until", "of", "verdict", "moved (PSI)"),
        tuple(
            (day_of(w["start"]), day_of(w["end"]), "answers" if w["kind"] == "prediction" else "inputs",
             Mark(w["verdict"]), ", ".join(f"{m['column']} {text_of(m['psi'])}" for m in w["moved"][:6]) or "–")
            for w in one["drift"][-12:]
        ),
        empty="Drift has not been judged.",
    )  # fmt: skip
    yield Table(
        ("alert", "tier", "state", "event time"),
        tuple(
            (a["title"], a["tier"], Mark(a["state"] or "?"), time_of(a["event_time"]))
            for a in one["alerts"][:20]
        ),
        empty="No alert names this version.",
    )


def _interface(card: Json) -> Iterator[Block]:
    one = card["interface"]
    if one is None:
        yield Said("The bundle's own description is not on this home.", "warn")
        return
    yield Table(
        ("input", "kind", "may be null"),
        tuple((f["name"], f["dtype"], "yes" if f["nullable"] else "no") for f in one["inputs"]),
    )
    answers = ", ".join(one["classes"] or one["outputs"])
    yield Pairs((("Answers", answers), ("Features", ", ".join(one["features"]))))


def _evidence(card: Json) -> Iterator[Block]:
    yield Table(
        ("kind", "verdict", "recorded", "digest"),
        tuple((e["kind"], Mark(e["verdict"]), time_of(e["at"]), Code(e["digest"])) for e in card["evidence"]),
        empty="None is recorded.",
    )
