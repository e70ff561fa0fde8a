"""A page of docs/ as a script: its files are written, its commands typed, its printed answers compared.

A fence ```` ```yaml NAME ```` is the content of the file NAME. In a ```` ```console ```` fence, lines that begin with
`$ ` are typed, and the lines below are what was printed. All happens in order, in one empty folder that is also the
home directory `~`. What changes from run to run (times, digests, ids, tokens, measurements) is compared by its kind.
"""

import csv
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path
from typing import Any

from loopwright.demo.processes import Process, free_port
from loopwright.project.policy import TIERS
from loopwright.registry.policies import builtin
from tests.integration.docs.warm import Warm

DOCS = Path(__file__).parents[3] / "docs"
PORT, SERVING, GRPC = "8080", "8081", "8082"
PLAYED = [
    "governance.md",
    "access.md",
    "documents-and-lineage.md",
    "contracts.md",
    "features.md",
    "tables-and-versions.md",
    "incidents.md",
    "serving.md",
    "jobs.md",
]
FENCE = re.compile(r"^```(?P<language>\w+)(?: (?P<name>\S+))?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)

# In this order: a time holds what would pass for a number.
_KINDS = [
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?", "<time>"),
    (r"\b20\d\d-\d\d(-\d\d)?\b", "<date>"),
    (r"ed25519:[A-Za-z0-9+/]+=*", "<key>"),
    (r"\blw_[A-Za-z0-9_-]+…?", "<token>"),
    (r"\b[a-z]{2,3}_[0-9a-f]{8,}", "<id>"),
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b…?", "<digest>"),
    (r"\b\d+(\.\d+)? [kM]B\b", "<size>"),
    (r"\b\d+\.\d+(e-\d+)?\b", "<number>"),
    (r"\b\d{2,} d\b", "<age> d"),
    (r"\b\d{4,}\b", "<number>"),
    # How many rows the audit log has by then depends on what else is written down, not on what is shown here.
    (r"\brow \d+", "row <number>"),
    (r"\b\d+( single)? rows(?=, each| written)", "<number> rows"),
    (r"^\s*\d+\s+(?=<time>)", "<number> "),
    (r"\s+", " "),
]


@dataclass
class Step:
    """One command of the page with what the page says it prints."""

    typed: str
    printed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """A page after its commands were typed: its text with all that they printed, and where that is of another kind."""

    text: str
    differs: list[str]


def play(text: str, folder: Path) -> Played:
    """Type the commands of a page in `folder`, which is made."""
    player, differs = Player(folder), list[str]()

    def fence(found: re.Match[str]) -> str:
        if found["name"]:
            player.write(found["name"], found["body"])
        if found["language"] != "console":
            return found[0]
        lines = ["```console"]
        for step in steps(found["body"]):
            printed = player.type(step.typed)
            said, says = kinds(step.printed), kinds(printed)
            if said != says:
                differs.extend(
                    unified_diff(said, says, "the page", "the product", f"$ {step.typed}", lineterm="")
                )
            lines += [f"$ {step.typed}", *printed]
        return "\n".join([*lines, "```"])

    try:
        return Played(FENCE.sub(fence, text), differs)
    finally:
        player.leave()


def steps(body: str) -> Iterator[Step]:
    """The commands of a console block, each with the lines below it."""
    step: Step | None = None
    for line in body.splitlines():
        if step is not None and step.typed.endswith("\\") and not step.printed:
            step.typed += f"\n{line}"
        elif line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(line.removeprefix("$ "))
        elif step is not None:
            step.printed.append(line)
    if step is not None:
        yield step


def kinds(lines: list[str]) -> list[str]:
    """The lines with all that changes from run to run replaced by what kind of thing it is."""
    text = "\n".join(lines)
    for pattern, kind in _KINDS[:-1]:
        text = re.sub(pattern, kind, text, flags=re.MULTILINE)
    return [re.sub(*_KINDS[-1], line).strip() for line in text.splitlines()]


class Player:
    """A shell in an empty folder, which keeps its exported variables from one command to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {shown: str(free_port()) for shown in (PORT, SERVING, GRPC)}
        self.running: list[Process] = []
        programs = folder / ".bin"
        programs.mkdir(parents=True)
        write_loans(folder / "loans.csv")
        (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (programs / "python").chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LOOPWRIGHT_", "MLFLOW_"))}
        self.environment = clean | {
            "HOME": str(folder), "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore",
            "NO_PROXY": "*", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        self.warm = Warm(programs, self.environment)

    def write(self, name: str, body: str) -> None:
        """Write one of the page's files."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for shown, port in self.ports.items():
            body = body.replace(f":{shown}", f":{port}")
        path.write_text(body, encoding="utf-8")

    def type(self, command: str) -> list[str]:
        """Run one command; what it printed on both outputs, line by line. `… &` starts `up` or `serve`."""
        real = command
        for shown, port in self.ports.items():
            real = real.replace(shown, port)
        if real.endswith(" &"):
            self.start(real.removesuffix(" &").split())
            return []
        if re.fullmatch(r"kill( %\d)+", command):
            self.stop()
            return []
        kept = self.folder / ".exported"
        script = f'[ -f "{kept}" ] && . "{kept}"\n{real}\ncode=$?\nexport -p > "{kept}"\nexit $code'
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        printed = done.stdout.replace(str(self.folder), "~")
        for shown, port in self.ports.items():
            printed = printed.replace(f":{port}", f":{shown}")
        # A secret is nothing to print, not even a spent one: scanners would find it.
        printed = re.sub(r"(\blw_[0-9a-f]+_)[\w-]+", r"\1…", printed)
        return [line.rstrip() for line in printed.rstrip("\n").splitlines()]

    def start(self, words: list[str]) -> None:
        """Start a control plane or a data plane, and wait until it is ready."""
        assert words[:2] in (["loopwright", "up"], ["loopwright", "serve"]), words
        port = self.ports[PORT if words[1] == "up" else SERVING]
        words = [str(self.folder / word[2:]) if word.startswith("~/") else word for word in words]
        started = Process(words[1:], log=self.folder / f".{words[1]}.log", environment=self.environment)
        self.running.append(started.start())
        started.wait_ready(f"http://127.0.0.1:{port}/readyz")

    def stop(self) -> None:
        """End what runs beside, the last started first."""
        while self.running:
            self.running.pop().stop()

    def leave(self) -> None:
        """End all that runs."""
        self.stop()
        self.warm.stop()


def write_loans(path: Path) -> None:
    """3,000 loans, some of which defaulted: those with much debt, few years of work and late payments."""
    draw = random.Random(7)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["income", "debt", "years_employed", "late_payments", "age_band", "defaulted"])
        for _ in range(3_000):
            income, burden = round(draw.lognormvariate(10.4, 0.4)), draw.betavariate(2, 5)
            years, late = draw.randint(0, 30), min(9, int(draw.expovariate(1.2)))
            band = draw.choice(["under 40", "40 and over"])
            odds = math.exp(-2.2 + 4 * burden - 0.05 * years + 0.9 * late)
            answer = "yes" if draw.random() < odds / (1 + odds) else "no"
            writer.writerow([income, round(income * burden), years, late, band, answer])


def tiers() -> str:
    """The table of what each tier asks, from the documents in force on a new home."""
    said = {tier: builtin(tier).to_json() for tier in TIERS}

    def row(head: str, tell: Callable[[dict[str, Any]], str]) -> str:
        return f"| {head} | " + " | ".join(tell(said[tier]) for tier in TIERS) + " |"

    def evidence(stage: str) -> Callable[[dict[str, Any]], str]:
        return lambda policy: "<br>".join(
            _wanted(kind, asked) for kind, asked in policy["evidence"][stage].items()
        )

    def glass(policy: dict[str, Any]) -> str:
        emergency = policy["emergency"]
        past = ", also past failed gates" if emergency["failed_gates"] else ""
        return (
            f"{emergency['role']}, reviewed within {emergency['review_within']}{past}"
            if emergency["allowed"]
            else "never"
        )

    return "\n".join([
        "| | " + " | ".join(TIERS) + " |",
        "|---|" + "---|" * len(TIERS),
        row("approvals for Staging", lambda p: f"{p['approvals']['staging']}"),
        row("approvals for Production", lambda p: f"{p['approvals']['production']}"),
        row("by at least", lambda p: p["reviewer"]["production"]),
        row("the author may approve", lambda p: "yes" if p["author_may_approve"] else "no"),
        row("the requester may approve", lambda p: "yes" if p["requester_may_approve"] else "no"),
        row("evidence for Staging", evidence("staging")),
        row("evidence for Production", evidence("production")),
        row("an approval counts for", lambda p: p["approvals_expire"]),
        row("may break the glass", glass),
        row("kept for", lambda p: p["retain"]),
    ])  # fmt: skip


def _wanted(kind: str, asked: dict[str, Any]) -> str:
    age = "" if asked["max_age"] == "never" else f", at most {asked['max_age']} old"
    sections = (
        f": {', '.join(name.replace('_', ' ') for name in asked['sections'])}" if asked["sections"] else ""
    )
    return f"{kind}{sections}{age}"


def with_tiers(text: str, table: str) -> str:
    """The text with the table between its marks."""
    return re.sub(
        r"(<!-- tiers:[^\n]*-->\n).*?(<!-- /tiers -->)", rf"\1\n{table}\n\n\2", text, flags=re.DOTALL
    )
