"""compress, as far as words go: what is asked badly is said before a home is opened."""

import json
from pathlib import Path

import pytest

from loopwright.cli.compressing import _named, _recipe
from loopwright.kernel.errors import BadInput
from tests.unit.cli.conftest import Type


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no model is named"),
        (("late@", "--recipe", "tree-rounds"), "MODEL@NUMBER"),
        (("late@x",), "MODEL@NUMBER"),
        (("late@0",), "MODEL@NUMBER"),
        (("late", "--target-size", "tiny"), "--target-size"),
        (("late", "--target-size", "0MB"), "above 0"),
        (("late", "--max-latency", "5"), "--max-latency"),
        (("late", "--max-loss", "1"), "--max-loss"),
        (("late", "--max-loss", "100%"), "0% to under 100%"),
        (("late", "--budget", "0m"), "budget"),
        (("late", "--budget", "soon"), "duration"),
        (("late", "--batch", "0"), "batch"),
        (("late", "--threads", "-1"), "threads"),
        (("late", "--recipe", "tree-round"), "tree-rounds"),
        (("late", "--recipe", "tree-rounds,,"), "unknown step"),
        (("late", "--recipe", "missing.yaml"), "cannot be read"),
        (("late", "--check-billion"), "--check-billion alone"),
    ],
)
def test_what_cannot_be_meant_is_bad_input(
    loopwright: Type, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    answer = loopwright("compress", *words)
    assert answer.code == 2 and said in answer.err, answer.err
    assert "fault of ours" not in answer.err
    assert not (tmp_path / "home").exists()


def test_a_model_that_there_is_not_is_said(loopwright: Type) -> None:
    answer = loopwright("compress", "late")
    assert answer.code == 2 and "no such model" in answer.err


def test_a_model_and_its_version_are_told_apart() -> None:
    assert _named("late") == ("late", None)
    assert _named("late@12") == ("late", 12)
    assert _named("a@b@3") == ("a@b", 3)


def test_a_recipe_is_names_or_a_file(tmp_path: Path) -> None:
    steps = [{"step": "tree-rounds", "keep": 0.5}, {"step": "tree-rounding"}]
    assert _recipe("tree-rounds, tree-rounding") == [{"step": "tree-rounds"}, {"step": "tree-rounding"}]
    assert _recipe("tree-rounds+tree-rounding") == [{"step": "tree-rounds"}, {"step": "tree-rounding"}]
    (tmp_path / "a.json").write_text(json.dumps(steps))
    (tmp_path / "b.yaml").write_text("recipe:\n- {step: tree-rounds, keep: 0.5}\n- {step: tree-rounding}\n")
    assert _recipe(str(tmp_path / "a.json")) == _recipe(str(tmp_path / "b.yaml")) == steps


@pytest.mark.parametrize("written", ["just words", "{step: [", "- a\n- b\n", "[1, 2", "\x00\xff"])
def test_a_file_that_is_no_recipe_is_bad_input(tmp_path: Path, written: str) -> None:
    for name in ("r.yaml", "r.json"):
        (tmp_path / name).write_bytes(written.encode("latin-1"))
        with pytest.raises(BadInput):
            _recipe(str(tmp_path / name))


def test_a_file_beyond_all_recipes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("- {step: tree-rounds}\n" * 10_000)
    with pytest.raises(BadInput, match="too large"):
        _recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("r.yaml", "recipe: [{step: tree-rounds}]\nmax_loss: 9%\n", "max_loss"),
        ("r.json", "[" * 90_000, "too deep"),
        ("r.yaml", "[" * 5_000, "too deep"),
        ("r.yaml", "- &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"- &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
        ), "10,000 values"),
    ],
)  # fmt: skip
def test_a_recipe_file_is_as_much_as_a_recipe_and_no_more(
    tmp_path: Path, name: str, written: str, said: str
) -> None:
    (tmp_path / name).write_text(written)
    with pytest.raises(BadInput, match=said):
        _recipe(str(tmp_path / name))


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_the_check_of_a_billion_answers_by_its_exit_code_too(
    loopwright: Type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ok: bool, code: int
) -> None:
    class Report:
        def to_json(self) -> dict[str, object]:
            return {"ok": ok, "size": 290_000_000}

        def to_text(self) -> str:
            return "weights are random"

    asked: list[Path] = []

    def run_check(folder: Path, **rest: object) -> Report:
        asked.append(folder)
        return Report()

    monkeypatch.setattr("loopwright.compression.streaming.check.run_check", run_check)
    plain, said = (
        loopwright("compress", "--check-billion"),
        loopwright("compress", "--check-billion", "--json"),
    )
    assert (plain.code, said.code) == (code, code)
    assert "weights are random" in plain.out and json.loads(said.out)["size"] == 290_000_000
    assert asked[0].is_dir() and asked[0].is_relative_to(tmp_path)
