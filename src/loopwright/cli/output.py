"""Where an answer may be written: decided before anything is asked."""

from pathlib import Path

from loopwright.kernel.errors import BadInput


def check_place(path: Path | None) -> None:
    """Raise BadInput unless a file can stand at `path`: a folder that is mistyped is not made."""
    if path is None:
        return
    if path.is_dir():
        raise BadInput("is a folder", where=str(path), wanted="the name of a file")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise BadInput naming the folder that `path` would stand in when there is none."""
    if not path.absolute().parent.is_dir():
        raise BadInput(
            "no such folder", where=str(path), got=str(path.parent), next="Make it first, or name another."
        )
