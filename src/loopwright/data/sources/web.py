"""`http(s)://`: a download into a temporary folder."""

import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from loopwright.data.sources.files import Delivery, deliver
from loopwright.data.sources.reading import Reading, public_uri
from loopwright.kernel.errors import NotFound, Unavailable


def download(uri: str, reading: Reading) -> tuple[Delivery, "tempfile.TemporaryDirectory[str]"]:
    folder = tempfile.TemporaryDirectory(prefix="loopwright-source-")
    path = Path(folder.name) / (Path(unquote(urlsplit(uri).path)).name or "download")
    try:
        with httpx.stream("GET", uri, timeout=30) as answer, path.open("wb") as file:
            if answer.status_code >= 400:
                raise NotFound(
                    "the server does not hand it out",
                    where=public_uri(uri),
                    got=f"HTTP {answer.status_code}",
                    next="Check the uri",
                )
            for chunk in answer.iter_bytes():
                file.write(chunk)
    except httpx.HTTPError as error:
        raise Unavailable(
            "the server does not answer", where=public_uri(uri), got=str(error), next="Try again later"
        ) from error
    return deliver([(public_uri(uri), path)], reading), folder
