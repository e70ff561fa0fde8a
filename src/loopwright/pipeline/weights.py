"""The weights of a torch module, kept with its run, so that it can be trained further without being trained again.

A `.npz` of plain arrays: reading it runs nothing. It is not sealed, so whoever uses it compares the module's answers
with the bundle's first.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from loopwright.kernel.errors import BadInput
from loopwright.kernel.files import write_atomic
from loopwright.kernel.home import Home
from loopwright.training.export import is_torch

FILE = "weights.npz"
MAX_BYTES = 2_000_000_000
_PREFIX = "state/"


def weights_of(model: Any) -> bytes | None:
    """The state of a torch module as `.npz`; None for other models, and beyond 2 GB."""
    if not is_torch(model) or not hasattr(model, "state_dict"):
        return None
    arrays = {f"{_PREFIX}{name}": _array(values) for name, values in model.state_dict().items()}
    if sum(array.nbytes for array in arrays.values()) > MAX_BYTES:
        return None
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # no name is that of its option
    return stream.getvalue()


def keep_weights(home: Home, run_id: str, weights: bytes) -> Path:
    """Write them beside the run's project; whole or not at all."""
    path = home.root / "runs" / run_id / FILE
    write_atomic(path, weights)
    return path


def kept_weights(home: Home, run_id: str) -> Path | None:
    """Where a run's weights lie; None when it kept none."""
    path = home.root / "runs" / run_id / FILE
    return path if path.is_file() else None


def load_weights(module: Any, path: Path) -> Any:
    """Put the kept state into `module` and return it; raises BadInput when it is not this module's."""
    import torch

    wanted = module.state_dict()
    found = {}
    try:
        with np.load(path, allow_pickle=False) as kept:
            names = {name.removeprefix(_PREFIX) for name in kept.files}
            if names != set(wanted):
                raise BadInput(
                    "module() gives another module than the one that was trained", where=str(path),
                    got=", ".join(sorted(names ^ set(wanted))[:5]), wanted="the same parameters",
                )  # fmt: skip
            for name, values in wanted.items():
                array = kept[f"{_PREFIX}{name}"]
                if tuple(array.shape) != tuple(values.shape):
                    raise BadInput(
                        "module() gives another module than the one that was trained", where=f"{path}: {name}",
                        got=tuple(values.shape), wanted=str(tuple(array.shape)),
                    )  # fmt: skip
                found[name] = torch.from_numpy(np.array(array))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"the kept weights cannot be read ({error})", where=str(path)) from error
    module.load_state_dict(found)
    return module.eval()


def _array(values: Any) -> np.ndarray[Any, Any]:
    values = values.detach().cpu()
    if (
        str(values.dtype) == "torch.bfloat16"
    ):  # numpy has none; nothing is lost on the way to float32 and back
        values = values.float()
    return np.asarray(values.numpy())
