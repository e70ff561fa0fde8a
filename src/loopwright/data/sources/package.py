"""`package://NAME/path/in/package`: a file inside an installed package, found without importing it."""

import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loopwright.kernel.errors import BadInput, NotFound


def find_in_package(uri: str) -> Path:
    """The path of the file. Raises NotFound for a package that is not installed."""
    parts = urlsplit(uri)
    package, inner = parts.netloc, unquote(parts.path).lstrip("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", package) or not inner:
        raise BadInput(
            "not a package source", where=uri, wanted="package://NAME/path/in/package", next="Mend the uri"
        )
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise NotFound(
            f"the package {package} is not installed", where=uri, next=f"Install it: pip install {package}"
        )
    root = Path(next(iter(found.submodule_search_locations))).resolve()
    path = (root / inner).resolve()
    if not path.is_relative_to(root):
        raise BadInput(
            "leaves the package", where=uri, got=inner, wanted=f"a path inside {package}", next="Mend the uri"
        )
    return path
