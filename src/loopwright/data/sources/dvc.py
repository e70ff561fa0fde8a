"""`dvc://PATH@REV`, `dvc://REPO//PATH@REV`: data that DVC tracks, as it was at a revision of a git repository.

PATH starts at the project's folder, or at REPO (a folder). The pointer (`PATH.dvc`, or an output in `dvc.lock`) is read
from git at REV; the bytes come from DVC's cache, else from a remote that is a folder or s3://, and must have the MD5
that the pointer names. DVC itself is not needed and nothing in the work tree is changed.
"""

import configparser
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from loopwright.data.sources import s3, scratch
from loopwright.data.sources.files import MAX_FILES, Delivery, deliver
from loopwright.data.sources.reading import Reading
from loopwright.kernel.errors import BadInput, NotFound, Tampered, Unavailable

MAX_POINTER = 16 << 20
GIT_SECONDS = 60
_REV = re.compile(r"[A-Za-z0-9_.@][A-Za-z0-9_./@{}^~+-]*")
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True, slots=True)
class _Repository:
    """A git repository at a commit. `root`: its top folder."""

    root: Path
    commit: str
    name: str

    def show(self, path: str) -> bytes | None:
        """A file as it is in the commit; None for none."""
        size = git(self.root, "cat-file", "-s", f"{self.commit}:{path}", name=self.name, none=True)
        if size is None:
            return None
        if int(size) > MAX_POINTER:
            raise BadInput("a pointer is too large", where=f"{self.name}: {path}", got=f"{int(size)} bytes",
                           wanted=f"at most {MAX_POINTER}")  # fmt: skip
        return git(self.root, "cat-file", "blob", f"{self.commit}:{path}", name=self.name, none=True)

    def names(self, folder: str) -> list[str]:
        listed = git(
            self.root, "ls-tree", "--name-only", "-z", f"{self.commit}:{folder}", name=self.name, none=True
        )
        return [n.decode(errors="replace") for n in (listed or b"").split(b"\0") if n]


@dataclass(frozen=True, slots=True)
class _Out:
    """What a pointer says: the MD5 of the bytes, and by which layout and reading of line ends it was made."""

    md5: str
    legacy: bool
    pointer: str


def fetch(
    uri: str, base: Path, reading: Reading
) -> tuple[Delivery, "tempfile.TemporaryDirectory[str]", Mapping[str, Any]]:
    """The tracked file, or all files of a tracked folder; and what lineage should know.

    Raises NotFound when git or DVC does not know it or no cache has it, Tampered when bytes are not what was tracked.
    """
    repository, path = _open(uri, base)
    out, below = _pointer(repository, path)
    origin = {
        "dvc_rev": repository.commit, "dvc_path": path, "dvc_md5": out.md5, "dvc_pointer": out.pointer,
    }  # fmt: skip
    folder = scratch.folder()
    store = _Store(repository, _dvc_root(repository, path), Path(folder.name))
    if not out.md5.endswith(".dir"):
        found = store.find(out.md5, out.legacy, uri)
        return deliver([(uri, found)], reading, called=[PurePosixPath(path).name]), folder, origin
    entries = _entries(store.find(out.md5, out.legacy, uri), uri)
    if below:
        chosen = {name: md5 for name, md5 in entries.items() if name == below or name.startswith(f"{below}/")}
        if not chosen:
            raise NotFound(
                f"the folder {out.pointer.removesuffix('.dvc')} holds no such file", where=uri, got=below
            )
        if below in chosen:
            found = store.find(chosen[below], out.legacy, uri)
            return deliver([(uri, found)], reading, called=[PurePosixPath(below).name]), folder, origin
        entries = chosen
    seen = {
        n: m for n, m in entries.items() if not any(p.startswith((".", "_")) for p in PurePosixPath(n).parts)
    }
    if not seen:
        raise NotFound("the folder holds no file", where=uri, wanted="CSV, Parquet or JSON lines")
    files = [
        (f"{uri}: {name}", store.find(seen[name], out.legacy, f"{uri}: {name}")) for name in sorted(seen)
    ]
    return deliver(files, reading, called=[PurePosixPath(n).name for n in sorted(seen)]), folder, origin


def git(root: Path, *arguments: str, name: str, none: bool = False) -> bytes | None:
    """What git prints; None when it fails and `none` is allowed."""
    command = ["git", "-C", str(root), "--no-pager", "--no-replace-objects", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise Unavailable("git is not installed", where=name, next="Install git") from None
    except subprocess.TimeoutExpired:
        raise Unavailable("git does not answer", where=name, got=f"nothing in {GIT_SECONDS} s") from None
    if done.returncode == 0:
        return done.stdout
    if none:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    raise NotFound(
        "git does not find it", where=name, got=said[0][:300] if said else "", next="Check the uri"
    )


def _open(uri: str, base: Path) -> tuple[_Repository, str]:
    place, at, rev = uri.removeprefix("dvc://").rpartition("@")
    if not at:
        place, rev = rev, "HEAD"
    where, double, path = place.partition("//")
    start = (base / Path(where).expanduser()) if double else base
    path = path if double else where
    if not _REV.fullmatch(rev) or ".." in rev:
        raise BadInput("not a revision", where=uri, got=rev, wanted="a commit, branch or tag: dvc://PATH@REV")
    if not path or PurePosixPath(path).is_absolute() or "\0" in path:
        raise BadInput("not a path in a repository", where=uri, got=path,
                       wanted="dvc://PATH@REV or dvc://REPO//PATH@REV", next="Mend the uri")  # fmt: skip
    if not start.is_dir():
        raise NotFound("no such repository", where=uri, got=str(start), next="Clone it, and name its folder")
    root = Path((git(start, "rev-parse", "--show-toplevel", name=uri) or b"").decode().rstrip("\n"))
    commit = git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}", name=uri, none=True
    )
    if commit is None:
        raise NotFound("git knows no such revision", where=uri, got=rev, next=f"See: git -C {root} log --all")
    parts: list[str] = list(start.resolve().relative_to(root.resolve()).parts)
    for part in PurePosixPath(path).parts:
        if part == "..":
            if not parts:
                raise BadInput("leaves the repository", where=uri, got=path, wanted=f"a path below {root}")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return _Repository(root, commit.decode().strip(), uri), "/".join(parts)


def _pointer(repository: _Repository, path: str) -> tuple[_Out, str]:
    """The pointer of `path` or of a tracked folder around it, and what is left of the path below that folder."""
    tracked = PurePosixPath(path)
    for candidate in (tracked, *tracked.parents):
        if candidate == PurePosixPath("."):
            break
        below = "" if candidate == tracked else str(tracked.relative_to(candidate))
        out = _in_dvc_file(repository, candidate) or _in_lock(repository, candidate)
        if out is not None and (not below or out.md5.endswith(".dir")):
            return out, below
    listed = (
        repository.names(str(tracked.parent))
        if tracked.parent != PurePosixPath(".")
        else repository.names("")
    )
    in_git = tracked.name in listed
    raise NotFound(
        "DVC does not track it at this revision", where=repository.name, got=f"{path} at {repository.commit[:12]}",
        wanted=f"{path}.dvc, or an output in dvc.lock",
        next="git itself holds it: name the file's path instead" if in_git else "Check path and revision",
    )  # fmt: skip


def _in_dvc_file(repository: _Repository, path: PurePosixPath) -> _Out | None:
    pointer = f"{path}.dvc"
    text = repository.show(pointer)
    if text is None:
        return None
    for out in _mapping(text, f"{repository.name}: {pointer}").get("outs") or []:
        if isinstance(out, dict) and out.get("path") == path.name:
            return _out(out, pointer, repository.name)
    return None


def _in_lock(repository: _Repository, path: PurePosixPath) -> _Out | None:
    for folder in path.parents:
        pointer = str(folder / "dvc.lock")
        text = repository.show(pointer)
        if text is None:
            continue
        lock = _mapping(text, f"{repository.name}: {pointer}")
        stages = lock.get("stages") if "schema" in lock else lock
        for stage in (stages or {}).values() if isinstance(stages, dict) else []:
            for out in stage.get("outs") or [] if isinstance(stage, dict) else []:
                if isinstance(out, dict) and PurePosixPath(str(out.get("path"))) == path.relative_to(folder):
                    return _out(out, pointer, repository.name)
    return None


def _out(out: Mapping[str, Any], pointer: str, name: str) -> _Out:
    md5 = out.get("md5")
    if not isinstance(md5, str) or not _MD5.fullmatch(md5):
        raise BadInput("a pointer without an MD5", where=f"{name}: {pointer}", got=", ".join(map(str, out)),
                       wanted="md5: …", next="Let DVC track it: dvc add, or dvc commit")  # fmt: skip
    return _Out(md5, out.get("hash") != "md5", pointer)


def _mapping(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput("not YAML", where=where, got=str(error).splitlines()[0]) from None
    if not isinstance(found, dict):
        raise BadInput("not a pointer of DVC", where=where, wanted="outs: [{md5, path}]")
    return found


def _entries(path: Path, name: str) -> dict[str, str]:
    """Files of a tracked folder: relative path → MD5."""
    if path.stat().st_size > MAX_POINTER:
        raise BadInput("a tracked folder lists too many files", where=name, wanted=f"at most {MAX_FILES}")
    try:
        listed = json.loads(path.read_bytes())
        entries = {str(entry["relpath"]): str(entry["md5"]) for entry in listed}
    except (ValueError, TypeError, KeyError):
        raise BadInput("not a folder as DVC lists it", where=name, wanted="[{md5, relpath}]") from None
    if len(entries) > MAX_FILES or not all(_MD5.fullmatch(md5) for md5 in entries.values()):
        raise BadInput("not a folder as DVC lists it", where=name, got=f"{len(entries)} files",
                       wanted=f"at most {MAX_FILES}, each with its MD5")  # fmt: skip
    return entries


def _dvc_root(repository: _Repository, path: str) -> Path:
    """The nearest folder around the path with a .dvc folder: a git repository may hold several."""
    for folder in PurePosixPath(path).parents:
        if (repository.root / folder / ".dvc").is_dir():
            return repository.root / folder
    return repository.root


class _Store:
    """Where the bytes may lie: DVC's cache, then the remotes that can be read without DVC."""

    def __init__(self, repository: _Repository, root: Path, scratch_folder: Path) -> None:
        self._folder = root / ".dvc"
        self._scratch = scratch_folder
        self._config = configparser.ConfigParser(interpolation=None)
        try:
            self._config.read([self._folder / "config", self._folder / "config.local"], encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise BadInput("DVC's configuration cannot be read", where=str(self._folder / "config"),
                           got=str(error).splitlines()[0]) from None  # fmt: skip
        self._cache = self._local(self._config.get("cache", "dir", fallback="cache"))

    def find(self, md5: str, legacy: bool, where: str) -> Path:
        """The object's bytes, checked. Raises NotFound with what would bring them here."""
        for key in _layouts(md5):
            path = self._cache / key
            if path.is_file():
                return _checked(path, md5, legacy, where)
        looked = [str(self._cache)]
        for name, url in self._remotes():
            found = self._in_remote(url, md5, where)
            if found is not None:
                return _checked(found, md5, legacy, where)
            looked.append(f"remote {name}")
        raise NotFound(
            "DVC's cache does not hold these bytes", where=where, got=f"md5 {md5}", wanted=f"in {', '.join(looked)}",
            next="Bring them here: dvc fetch --all-commits (or dvc pull at that revision)",
        )  # fmt: skip

    def _remotes(self) -> list[tuple[str, str]]:
        """(name, URL), the default one first."""
        found = {}
        for section in self._config.sections():
            named = re.fullmatch(r"""'?remote "(.+)"'?""", section)
            if named and self._config.has_option(section, "url"):
                found[named[1]] = self._config.get(section, "url")
        first = self._config.get("core", "remote", fallback="")
        return sorted(found.items(), key=lambda pair: (pair[0] != first, pair[0]))

    def _in_remote(self, url: str, md5: str, where: str) -> Path | None:
        scheme = urlsplit(url).scheme if "://" in url else ""
        if scheme == "":
            for key in _layouts(md5):
                if (self._local(url) / key).is_file():
                    return self._local(url) / key
        if scheme == "s3":
            from pyarrow import fs

            from loopwright.data.storage import s3_filesystem

            filesystem = s3_filesystem()
            for key in _layouts(md5):
                try:
                    info = filesystem.get_file_info(f"{url.removeprefix('s3://').rstrip('/')}/{key}")
                except OSError as error:
                    raise s3.told(error, where) from error
                if info.type == fs.FileType.File:
                    scratch.require_room(info.size, where)
                    path = self._scratch / md5
                    s3.copy(filesystem, info, path, where)
                    return path
        return None

    def _local(self, path: str) -> Path:
        """A path of DVC's configuration: relative ones start at the .dvc folder."""
        return (self._folder / Path(path).expanduser()).resolve()


def _layouts(md5: str) -> tuple[str, str]:
    """Where an object lies in a cache or remote: since DVC 3, and before."""
    return f"files/md5/{md5[:2]}/{md5[2:]}", f"{md5[:2]}/{md5[2:]}"


def _checked(path: Path, md5: str, legacy: bool, where: str) -> Path:
    plain = hashlib.md5(usedforsecurity=False)
    unix = hashlib.md5(usedforsecurity=False)  # before version 3 DVC read line ends of text as "\n"
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            plain.update(chunk)
            if legacy:
                data = rest + chunk
                rest = data[-1:] if data.endswith(b"\r") else b""
                unix.update(data[: len(data) - len(rest)].replace(b"\r\n", b"\n"))
    unix.update(rest)
    got = {plain.hexdigest(), *([unix.hexdigest()] if legacy else [])}
    if md5.removesuffix(".dir") not in got:
        raise Tampered(
            "these are not the bytes that were tracked", where=where, got=f"md5 {plain.hexdigest()} in {path}",
            wanted=f"md5 {md5}", next="Delete the file, then: dvc fetch --all-commits",
        )  # fmt: skip
    return path
