"""One seed for everything a training run draws from."""

import hashlib
import os
import random
import sys

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own (0 … 2³²-1) for a named part of a run; equal for equal arguments on every machine."""
    text = "/".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def seed_everything(seed: int) -> dict[str, object]:
    """Seed Python, numpy and, where it is loaded already, torch; return what was set, for the run's record.

    `PYTHONHASHSEED` and thread counts act only when set before the interpreter starts: see
    `child_environment`.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seeded = ["python", "numpy"]
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        seeded.append("torch")
    return {"seed": seed, "seeded": seeded, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "")}


def child_environment(seed: int, threads: int) -> dict[str, str]:
    """Variables for a new interpreter whose hashing and thread counts shall not vary between runs."""
    count = str(threads)
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {"PYTHONHASHSEED": str(seed % 2**32), **dict.fromkeys(pools, count)}
