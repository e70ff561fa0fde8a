"""Running a graph on a sample: what its tensors look like, and what it answers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from loopwright.compression.artefact import MAX_SINGLE, Artefact
from loopwright.compression.graphs.preparing import open_session, weight_bytes
from loopwright.compression.session import answer_name
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Array, Feeds, Rows, check_feeds
from loopwright.kernel.errors import BadInput

ROWS_AT_ONCE = 32
MIN_CALIBRATION = 8
"""Fewer rows say nothing about a range."""


def sample(source: Artefact, work: Work, rows: int) -> Rows:
    """At most `rows` training rows, as the graph takes them; raises BadInput for rows of another schema."""
    found = work.samples.calibration(work.seed, rows)
    check_feeds(source.ports, found.feeds, f"calibration rows for {source.path.name}")
    return found


def check_rows(rows: int, step: str) -> None:
    """Raise BadInput for a calibration set too small to say anything."""
    if rows < MIN_CALIBRATION:
        raise BadInput(
            "a calibration set of so few rows gives ranges of those rows only", where=f"{step}: rows",
            got=rows, wanted=f"at least {MIN_CALIBRATION}, better 100 or more",
        )  # fmt: skip


def batches(model: ModelProto, feeds: Feeds, size: int = ROWS_AT_ONCE) -> Iterator[dict[str, Array]]:
    """The rows a few at a time; by the graph's own number of rows where it is fixed, leaving out what is over."""
    own = own_rows(model, feeds)
    total = len(next(iter(feeds.values())))
    if total < own:
        raise BadInput(
            "fewer rows than the graph takes at once",
            where="calibration",
            got=total,
            wanted=f"at least {own}",
        )
    step = own or size
    for at in range(0, total - (own - 1 if own else 0), step):
        yield {name: np.ascontiguousarray(values[at : at + step]) for name, values in feeds.items()}


def own_rows(model: ModelProto, feeds: Feeds) -> int:
    """How many rows the graph takes at once where that is fixed, else 0."""
    fixed = [
        value.type.tensor_type.shape.dim[0].dim_value
        for value in model.graph.input
        if value.name in feeds and value.type.tensor_type.shape.dim
    ]
    return max(fixed, default=0)


def float_tensors(model: ModelProto) -> list[str]:
    """Tensors of float32 that a run computes, in the graph's order, inputs first. Needs inferred types."""
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)
    }
    order = [value.name for value in model.graph.input] + [
        name for node in model.graph.node for name in node.output
    ]
    stored = {tensor.name for tensor in model.graph.initializer}
    return [name for name in order if kinds.get(name) == TensorProto.FLOAT and name not in stored]


def observe(
    model: ModelProto, names: Sequence[str], feeds: Feeds, folder: Path, see: Callable[[str, Array], None],
    threads: int = 1,
) -> None:  # fmt: skip
    """Run the graph over `feeds` and hand `see` each tensor of `names`, batch by batch; lengths may differ.

    Raises BadInput naming the first tensor that holds no number.
    """
    given = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in given]
    session = None
    if inner:
        watched = ModelProto()
        watched.CopyFrom(model)
        del watched.graph.output[:]
        watched.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner
        )
        try:
            session = open_session(at_hand(watched, folder, "watched.onnx"), threads, optimise=False)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise CannotExport(f"ONNX Runtime does not load the graph ({str(error)[:500]})") from error
    for batch in batches(model, feeds):
        seen = {name: batch[name] for name in names if name in given}
        if session is not None:
            taken = {value.name for value in session.get_inputs()}
            try:
                found = session.run(inner, {name: values for name, values in batch.items() if name in taken})
            except Exception as error:  # as above
                raise CannotExport(
                    f"ONNX Runtime does not run the graph on the rows ({str(error)[:500]})"
                ) from error
            seen |= dict(zip(inner, found, strict=True))
        for name, values in seen.items():
            if not np.isfinite(values).all():
                raise BadInput(
                    "the model computes no number on the calibration rows", where=name,
                    got="NaN or infinite", wanted="finite values",
                    next="Look for NaN in the rows, or overflow in the model.",
                )  # fmt: skip
            see(name, values)


def answers(model: ModelProto, feeds: Feeds, folder: Path, threads: int = 1) -> Array:
    """The first output of numbers for all rows, (n, …). Raises CannotExport where it does not run."""
    try:
        session = open_session(at_hand(model, folder, "asked.onnx"), threads)
        first = answer_name(session, "the graph")
        return np.concatenate([session.run([first], batch)[0] for batch in batches(model, feeds)])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CannotExport(f"ONNX Runtime does not run the graph ({str(error)[:500]})") from error


def at_hand(model: ModelProto, folder: Path, name: str) -> Path | bytes:
    """The model as a session takes it: bytes, or a file in `folder` with its weights beside it when it is large."""
    if weight_bytes(model) < MAX_SINGLE // 2:
        data: bytes = model.SerializeToString()
        return data
    path = folder / name
    (folder / f"{name}.data").unlink(missing_ok=True)
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, str(path), save_as_external_data=True, location=f"{name}.data")
    return path
