"""What is written down about a run without being asked: code, data, seeds, environment, machine, command."""

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from loopwright.kernel.actor import Actor
from loopwright.kernel.digest import digest_json
from loopwright.project.spec import Project
from loopwright.training.code import code_digest, code_record

log = logging.getLogger(__name__)

_SECRET_OPTION = re.compile(r"(token|password|secret|key)", re.IGNORECASE)


def capture(
    *, project: Project, snapshot: str, splits: Mapping[str, int], seed: int, actor: Actor
) -> dict[str, Any]:
    """JSON with keys code, data, seeds, environment, hardware, command, actor and `fingerprint`.

    `snapshot` is the data snapshot's digest, `splits` rows per part. `fingerprint` is what must be equal for
    a run to be expected to repeat bit by bit; `reproduce.compare` shows what in it differs. Where the code
    could not be kept, `code.git.why_not` says so and a warning is logged: training goes on.
    """
    code = code_record(project.dir)
    if code["git"] and code["git"]["why_not"]:
        log.warning("the run's code is not kept in git: %s", code["git"]["why_not"])
    machine = hardware()
    installed = environment()
    return {
        "actor": actor.name,
        "code": code,
        "data": {"snapshot": snapshot, "splits": dict(splits)},
        "project": {"dir": str(project.dir), "digest": project.digest},
        "seeds": {"seed": seed, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "")},
        "environment": installed,
        "hardware": machine,
        "command": redacted(sys.argv),
        "fingerprint": _fingerprint(code["digest"], project.digest, snapshot, seed, installed, machine),
    }


def mlflow_tags(context: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a captured context that MLflow's own pages look for, as tags."""
    git = context["code"]["git"] or {}
    known = {
        "mlflow.user": context["actor"],
        "mlflow.source.name": context["project"]["dir"],
        "mlflow.source.type": "PROJECT",
        "mlflow.source.git.commit": git.get("snapshot") or git.get("commit", ""),
        "mlflow.source.git.branch": git.get("branch", ""),
        "loopwright.code": context["code"]["digest"],
        "loopwright.git.dirty": str(git["dirty"]).lower() if git else "",
    }
    return {name: str(value) for name, value in known.items() if value}


def fingerprint(*, project: Project, snapshot: str, seed: int) -> dict[str, Any]:
    """What a run here and now would have as `capture(...)["fingerprint"]`; touches no git."""
    code = code_digest(project.dir)
    return _fingerprint(code, project.digest, snapshot, seed, environment(), hardware())


def _fingerprint(
    code: str,
    project: str,
    snapshot: str,
    seed: int,
    installed: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "code": code,
        "project": project,
        "data": snapshot,
        "seed": seed,
        "python": installed["python"],
        "packages": installed["digest"],
        **{name: machine[name] for name in ("cpu", "cpu_flags", "cores", "blas")},
        "threads": {name: os.environ.get(name, "") for name in pools},
    }


def environment() -> dict[str, Any]:
    """Python, platform, container image where known, and every installed package with the digest of that
    list; `requires` and `licences` say, by package, what it asks for and under which terms it comes."""
    found, requires, licences = {}, {}, {}
    for dist in metadata.distributions():
        told = dist.metadata  # read once: each look at a distribution's name parses its file anew
        name = plain_name(told["Name"] or "")
        if not name or name in found:  # of two on the path the first one is imported
            continue
        found[name] = told["Version"] or "0"
        requires[name] = _required(told.get_all("Requires-Dist") or ())
        licences[name] = _licence(told)
    packages = sorted(f"{name}=={version}" for name, version in found.items())
    image = os.environ.get("LOOPWRIGHT_IMAGE", "")
    inside = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "container": {"inside": inside, "image": image},
        "packages": packages,
        "digest": digest_json(packages),
        "requires": {
            name: kept for name in sorted(requires) if (kept := sorted(requires[name] & found.keys()))
        },
        "licences": {name: text for name, text in sorted(licences.items()) if text},
    }


def hardware() -> dict[str, Any]:
    """Processor, its flags (as a digest), usable cores, memory in bytes, BLAS kernels, GPUs."""
    info = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", info, re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE)
    return {
        "machine": platform.machine(),
        "cpu": model.group(1).strip() if model else platform.processor(),
        "cpu_flags": hashlib.sha256(" ".join(sorted(flags.group(1).split())).encode()).hexdigest()[:16]
        if flags
        else "",
        "cores": cores,
        "memory_bytes": int(memory.group(1)) * 1024 if memory else 0,
        "blas": _blas(),
        "gpus": _gpus(),
    }


def redacted(words: Sequence[str]) -> list[str]:
    """The command line with the values of options that name a token, password, secret or key replaced by
    "***"."""
    shown, hide = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        secret = option.startswith("-") and _SECRET_OPTION.search(option) is not None
        shown.append("***" if hide else f"{option}=***" if secret and equals else word)
        hide = secret and not equals
    return shown


def plain_name(name: str) -> str:
    """A package's name as indexes compare it: "PyYAML" and "pyyaml", "a_b" and "a-b" are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _required(lines: Sequence[str]) -> set[str]:
    """Names of what a package asks for without extras; markers of other platforms may leave one too many."""
    names = set()
    for line in lines:
        requirement, _, marker = line.partition(";")
        named = re.match(r"\s*([A-Za-z0-9][\w.-]*)", requirement)
        if named and "extra" not in marker:
            names.add(plain_name(named.group(1)))
    return names


def _licence(told: Any) -> str:
    """The SPDX expression where the package states one, else the name in its classifiers, else its short text."""
    expression = str(told.get("License-Expression") or "").strip()
    if expression:
        return expression
    classified = [
        line.rpartition("::")[2].strip()
        for line in told.get_all("Classifier") or ()
        if line.startswith("License ::") and line.count("::") > 1
    ]
    text = str(told.get("License") or "").strip()
    return " AND ".join(classified) or (text if len(text) <= 60 and "\n" not in text else "")


def _blas() -> list[str]:
    try:
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # comes with scikit-learn
    except ImportError:
        return []
    keys = ("internal_api", "version", "architecture", "num_threads")
    return sorted(
        {
            " ".join(str(pool.get(key)) for key in keys if pool.get(key) is not None)
            for pool in threadpool_info()
        }
    )


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-smi did not answer: %s", error)
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
