"""Opens a project that a request names."""

from pathlib import Path

from loopwright.control.context import Context
from loopwright.kernel.errors import Refused
from loopwright.project.spec import Project, load_project


def open_project(ctx: Context, folder: str) -> Project:
    """Load the project in a folder of the machine that does the work, unless MLflow's clients may have put it there.

    Its sources name any file of this machine, and what is wrong in them is shown: a token must not be enough for that.
    """
    if Path(folder).resolve().is_relative_to(ctx.home.artifacts.resolve()):
        raise Refused(
            "uploaded files are no project", where=folder, wanted="a folder outside the home's artifacts"
        )
    return load_project(Path(folder))
