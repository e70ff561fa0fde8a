"""What a teacher says about the training rows: computed once per teacher and rows, and kept on disk."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopwright.compression.networks.network import TorchNetwork, call, evaluating, tensors
from loopwright.compression.steps import Work
from loopwright.compression.subject import Array, Rows
from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import lock, written_whole

ROWS_AT_ONCE = 256


def lessons(teacher: TorchNetwork, rows: Rows, work: Work, hidden: Sequence[str] = ()) -> dict[str, Array]:
    """The teacher's answers to `rows`, under "", and the outputs of its layers `hidden`, by name; (n, …) float32.

    The arrays are mapped from `work.shared/teacher/`, under the digest of the teacher's weights and the rows: whoever
    asks again, in this run or a later one, makes no pass through the teacher. A file appears when it is whole; one
    that does not hold what it should (cut short by a full disk, changed) is made again. Two processes that ask at once
    make one pass. Raises BadInput for a layer that is not there, or one whose output is no tensor with the rows first.
    """
    folder = work.shared / "teacher" / _digest(teacher, rows)
    wanted = ("", *hidden)
    paths = {name: folder / f"{_file(name)}.npy" for name in wanted}
    with lock(folder.with_suffix(".lock")):
        known = {name: _read(path, len(rows)) for name, path in paths.items()}
        missing = [name for name, values in known.items() if values is None]
        if missing:
            work.watch.note(f"the teacher answers {len(rows)} rows")
            for name, values in _pass(teacher, rows, work, [one for one in missing if one]).items():
                if name in missing:
                    with written_whole(paths[name]) as stream:
                        np.save(stream, values, allow_pickle=False)
                    known[name] = _read(paths[name], len(rows))
    work.notes.params({"teacher_cached": not missing})
    return {name: values for name, values in known.items() if values is not None}


def layer(module: nn.Module, name: str, where: str) -> nn.Module:
    """The layer of that name; raises BadInput naming some that are there."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        there = [one for one, _ in module.named_modules() if one]
        raise BadInput(
            "there is no such layer", where=where, got=name, wanted=f"one of {', '.join(there[:20])}"
        ) from None


@contextmanager
def heard(module: nn.Module, names: Sequence[str], where: str) -> Iterator[dict[str, Tensor]]:
    """Within the block, each pass through `module` leaves the outputs of its layers `names` in the given dict."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(first, Tensor):
                raise BadInput(
                    "the layer's output is no tensor", where=f"{where}: {name}", got=type(output).__name__
                )
            outputs[name] = first

        return hook

    hooks = [layer(module, name, where).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _pass(teacher: TorchNetwork, rows: Rows, work: Work, hidden: Sequence[str]) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {name: [] for name in ("", *hidden)}
    total = len(rows)
    with (
        evaluating(teacher.module),
        torch.inference_mode(),
        heard(teacher.module, hidden, "teacher") as outputs,
    ):
        for at in range(0, total, ROWS_AT_ONCE):
            work.check_time()
            feeds = tensors({name: values[at : at + ROWS_AT_ONCE] for name, values in rows.feeds.items()})
            parts[""].append(call(teacher.module, feeds).float().numpy())
            for name, output in outputs.items():
                parts[name].append(output.float().numpy())
    made = {name: np.concatenate(found) for name, found in parts.items()}
    for name, values in made.items():
        if len(values) != total:
            raise BadInput(
                "the layer does not answer row by row", where=f"teacher: {name}", got=values.shape,
                wanted=f"{total} rows first",
            )  # fmt: skip
        if not np.isfinite(values).all():
            raise BadInput(
                "a teacher that answers with no numbers", where=f"teacher: {name or 'answers'}",
                got=f"{int((~np.isfinite(values)).sum())} NaN or infinite", wanted="finite answers",
            )  # fmt: skip
    return made


def _read(path: Path, rows: int) -> Array | None:
    """The array, mapped; None where there is none of so many rows."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError):
        return None  # cut short: it is made again
    return values if values.ndim and len(values) == rows and values.dtype == np.float32 else None


def _digest(teacher: TorchNetwork, rows: Rows) -> str:
    mark = hashlib.sha256(repr(teacher.module).encode())
    for name, weights in teacher.module.state_dict().items():
        mark.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        mark.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for name, values in sorted(rows.feeds.items()):
        mark.update(f"{name} {values.dtype} {values.shape}".encode())
        mark.update(np.ascontiguousarray(values).data)
    return mark.hexdigest()[:32]


def _file(name: str) -> str:
    return "answers" if not name else f"layer-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
