"""verify and trust scan: files by themselves, as a person types it."""

import json
from pathlib import Path

from loopwright.bundle.keys import SigningKey
from loopwright.bundle.testing import tiny_bundle

from .conftest import Type


def test_several_bundles_are_verified_and_one_bad_one_hides_no_other(
    loopwright: Type, tmp_path: Path
) -> None:
    key = SigningKey.generate()
    good = [str(tiny_bundle(tmp_path / name, key).path) for name in ("a", "b")]
    words = ("--key", key.public.to_text())
    both = loopwright("verify", *good, *words)
    assert both.code == 0 and both.out.count("signature  valid") == 2
    assert loopwright("verify", good[0], *words).out.strip() == both.out.split("\n\n")[0]
    some = loopwright("verify", good[0], str(tmp_path), good[1], *words, "--json")
    assert some.code == 1
    assert [one["ok"] for one in json.loads(some.out)] == [True, False, True]
    assert "no bundle here" in json.loads(some.out)[1]["failed"]
    assert loopwright("verify").code == 2


def test_a_table_of_data_is_no_pickle_in_plain_words(loopwright: Type, tmp_path: Path) -> None:
    (tmp_path / "loans.csv").write_text("id,amount\n1,2\n")
    answer = loopwright("trust", "scan", str(tmp_path / "loans.csv"))
    assert answer.code == 1 and "not a pickle, or one that is cut short" in answer.out
    assert "Error" not in answer.out
