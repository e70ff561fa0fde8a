"""The part of a model card that only people can write: `## Heading` and what stands under it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, Unavailable
from loopwright.kernel.verdict import Verdict

MAX_BYTES = 100_000
MAX_SECTIONS = 40
MIN_LENGTH = 40
"""Characters a section must hold before it counts as filled."""

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "Intended use": (
        "What decision does the model support, who makes it, and how often?",
        "What must it not be used for?",
    ),
    "Limitations": (
        "For which rows, groups, times or places is it less reliable, and how do you know?",
        "What should a person do instead where it is?",
    ),
    "Training data": (
        "Where do the rows come from, who agreed to their use, and what is not in them?",
        "How is the label decided, and how often is it wrong?",
    ),
    "Risks": (
        "What happens to whom when an answer is wrong, in each direction?",
        "Who notices, how soon, and what is done then?",
    ),
    "Contact": ("Who answers questions about this model, also in two years?",),
}
"""Heading → questions, as a new project's card.md asks them. A question left standing is not an answer."""

_BLANKS = re.compile(
    r"\b(?:todo|tbd|tba|fixme|xxx+|wip|n/?a|none yet|to be (?:done|written|defined|determined|added|"
    r"decided)|fill (?:this )?in|coming soon|placeholder|lorem ipsum)\b|…+|\.{3,}",
    re.IGNORECASE,
)
_BRIEF = ("licence", "contact")
"""Sections that a word fills: "Apache-2.0"."""

_SPELLINGS = {
    "license": "licence",
    "intended_uses": "intended_use",
    "limitation": "limitations",
    "risk": "risks",
}


@dataclass(frozen=True, slots=True)
class Written:
    """A card as somebody wrote it. `sections`: name → text in order; `digest`: SHA-256 of the file's bytes."""

    file: str
    text: str
    digest: str
    sections: Mapping[str, str] = field(default_factory=dict)

    @property
    def filled(self) -> tuple[str, ...]:
        """The sections that say something."""
        return tuple(name for name, text in self.sections.items() if says(name, text))

    @property
    def verdict(self) -> Verdict:
        """PASS when at least one section is filled. Which ones have to be is a policy's question."""
        return Verdict.PASS if self.filled else Verdict.FAIL

    def payload(self, *, by: str) -> dict[str, Any]:
        """What is recorded as evidence: a section that holds nothing but questions and TODOs is only named."""
        said = {name: text for name, text in self.sections.items() if _substance(text)}
        return {
            "file": self.file,
            "digest": self.digest,
            "by": by,
            "sections": said,
            "unfilled": [name for name in self.sections if name not in self.filled],
        }


def read_card(path: Path, *, name: str = "") -> Written:
    """Read and parse the file; raises BadInput for what is too large or no text. `name` is how it is called."""
    where = name or str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unavailable(f"cannot read ({error.strerror or error})", where=where) from error
    if len(raw) > MAX_BYTES:
        raise BadInput("the card is too long", where=where, got=f"more than {MAX_BYTES:,} bytes",
                       wanted="a page or two; put details behind links")  # fmt: skip
    try:
        return parse_card(raw.decode(), file=name or path.name)
    except UnicodeDecodeError as error:
        raise BadInput("not UTF-8 text", where=where, got=f"byte {error.start}") from None


def parse_card(text: str, *, file: str) -> Written:
    """Take the card apart at its `## Heading`s; headings in code blocks and quotes are none.

    What stands before the first is the section "summary". Sections of one name are joined. Raises BadInput for what is
    too long or holds control characters.
    """
    from markdown_it import MarkdownIt

    if len(text.encode()) > MAX_BYTES:
        raise BadInput("the card is too long", where=file, got=f"{len(text.encode()):,} bytes",
                       wanted=f"at most {MAX_BYTES:,}")  # fmt: skip
    if any(ord(sign) < 32 and sign not in "\t\n\r" for sign in text):
        raise BadInput("control characters in the card", where=file, wanted="plain Markdown")
    lines = re.split(r"\r\n|\r|\n", text)  # as Markdown counts them
    tokens = MarkdownIt("commonmark").parse(text)
    found: dict[str, list[str]] = {}
    name, since = "summary", 0

    def close(until: int) -> None:
        body = "\n".join(lines[since:until]).strip()
        if body or name != "summary":
            found.setdefault(name, []).append(body)

    for at, token in enumerate(tokens):
        if token.type != "heading_open" or token.level != 0 or token.map is None:
            continue
        if token.tag == "h1" and name == "summary":
            since = token.map[1]  # the card's own title is no text
        if token.tag == "h2":
            close(token.map[0])
            name, since = section_name(tokens[at + 1].content), token.map[1]
    close(len(lines))
    if len(found) > MAX_SECTIONS:
        raise BadInput(
            "too many sections in the card", where=file, got=len(found), wanted=f"at most {MAX_SECTIONS}"
        )
    sections = {name: "\n\n".join(filter(None, parts)) for name, parts in found.items()}
    said = {name: _answers(body) for name, body in sections.items()}
    if not said.get("summary"):
        said.pop("summary", None)  # no heading asked for it
    return Written(file, text, sha256_bytes(text.encode()), said)


def check_headings(written: Written, wanted: Iterable[str] = ()) -> None:
    """Raise BadInput for a text without any heading of a card: a table of data, notes, the wrong file.

    `wanted`: what a policy asks for besides the headings of a new project's card.md.
    """
    if not (_KNOWN | {*wanted}) & written.sections.keys():
        known = dict.fromkeys([*QUESTIONS, *map(title_of, wanted)])
        raise BadInput(
            "no card: none of a card's headings is in it", where=written.file,
            wanted="one of " + ", ".join(f"## {heading}" for heading in known),
        )  # fmt: skip


def section_name(heading: str) -> str:
    """ "Intended use" → "intended_use"; "License" → "licence"."""
    name = re.sub(r"\W+", "_", heading.lower()).strip("_")[:60] or "section"
    return _SPELLINGS.get(name, name)


_KNOWN = frozenset({*map(section_name, QUESTIONS), "licence"})


def title_of(name: str) -> str:
    """ "intended_use" → "Intended use"."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def says(name: str, text: str) -> bool:
    """Whether the section says something; a licence or a contact may be brief."""
    return bool(_substance(text)) if name in _BRIEF else is_filled(text)


def is_filled(text: str) -> bool:
    """Whether the text says something: at least 40 characters besides questions of the scaffold and placeholders"""
    said = _substance(text)
    letters = {sign for sign in said.lower() if sign.isalnum()}
    return len(said) >= MIN_LENGTH and len(letters) >= 8  # "aaaa…" and rulers say nothing


def template(model: str) -> str:
    """A card.md that asks its questions; nothing in it counts as filled."""
    parts = [f"# {model}\n", "What people must say about this model; the rest of its card is generated from evidence.\n"
             "Answer under each heading and delete the questions.\n"]  # fmt: skip
    for heading, questions in QUESTIONS.items():
        parts.append(f"## {heading}\n")
        parts.append("\n".join(f"- _{question}_" for question in questions) + "\n")
    return "\n".join(parts)


def _plain(line: str) -> str:
    return re.sub(r"[\s_*>#-]+", " ", line).strip().lower()


_ASKED = frozenset(
    _plain(line)
    for line in (
        *(question for questions in QUESTIONS.values() for question in questions),
        "What people must say about this model; the rest of its card is generated from evidence.",
        "Answer under each heading and delete the questions.",
    )
)


def _answers(text: str) -> str:
    """The text without the scaffold's own lines."""
    kept = [line for line in text.splitlines() if not line.strip() or _plain(line) not in _ASKED]
    return "\n".join(kept).strip()


def _without_comments(text: str) -> str:
    # Not by an expression: each "<!--" that nothing closes would be followed to the end of the text.
    parts, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        parts.append(text[at:start])
        at = end + len("-->")
    return " ".join([*parts, text[at:]])


def _substance(text: str) -> str:
    said = " ".join(_BLANKS.sub(" ", _without_comments(_answers(text))).split())
    return said if any(sign.isalnum() for sign in said) else ""
