"""Opens a project that a request names."""

from contextlib import suppress
from pathlib import Path

from loopwright.control.context import Context
from loopwright.kernel.errors import BadInput, Refused
from loopwright.project.spec import Project, load_project


def lies_in(folder: Path, named: str) -> bool:
    """Whether a path that a request names leads into `folder`; raises BadInput for what can be no path."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            Path(named).stat()
        return Path(named).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadInput("cannot be a path", where=named[:200], got=why) from None


def open_project(ctx: Context, folder: str) -> Project:
    """Load the project in a folder of the machine that does the work, unless MLflow's clients may have put it there.

    Its sources name any file of this machine, and what is wrong in them is shown: a token must not be enough for that.
    """
    if lies_in(ctx.home.artifacts, folder):
        raise Refused(
            "uploaded files are no project", where=folder, wanted="a folder outside the home's artifacts"
        )
    return load_project(Path(folder))
