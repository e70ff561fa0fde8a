"""An MLflow folder in a bundle is the same bytes every time, and unpacks to what was packed and nowhere else."""

import io
import stat
import zipfile
from pathlib import Path

import pytest

from loopwright.bundle import archive
from loopwright.bundle.archive import PROGRAM, check_archive, pack, scan_archive, unpack
from loopwright.kernel.errors import BadInput, Tampered


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "data").mkdir(parents=True)
    (root / "MLmodel").write_text("flavors: {}\n")
    (root / "data" / "weights").write_bytes(bytes(range(256)) * 100)
    return root


def zipped(*entries: tuple[str, bytes, int], mlmodel: bool = True) -> bytes:
    """A zip of (name, bytes, mode) as somebody else may write it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, data, mode in [*([("MLmodel", b"x", 0o100644)] if mlmodel else []), *entries]:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            made.writestr(entry, data)
    return stream.getvalue()


def changed(data: bytes, place: int, byte: int) -> bytes:
    """The zip with another byte at `place` of its first entry in the directory."""
    at = data.index(b"PK\x01\x02") + place
    return data[:at] + bytes([byte]) + data[at + 1 :]


def test_a_folder_comes_back_as_it_was_and_packs_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder)
    (folder / "MLmodel").touch()
    assert pack(folder) == packed
    out = tmp_path / "out"
    out.mkdir()
    unpack(packed, out)
    assert (out / "data" / "weights").read_bytes() == (folder / "data" / "weights").read_bytes()
    assert sorted(path.name for path in out.rglob("*")) == ["MLmodel", "data", "weights"]
    assert pack(out) == packed
    assert scan_archive(packed).globals == (PROGRAM,)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (zipped(("../evil", b"", 0o100644)), "not a path inside"),
        (zipped(("/etc/evil", b"", 0o100644)), "not a path inside"),
        (zipped(("a\\..\\evil", b"", 0o100644)), "not a path inside"),
        (zipped(("link", b"/etc/passwd", stat.S_IFLNK | 0o777)), "plain files only"),
        (zipped(("pipe", b"", stat.S_IFIFO | 0o644)), "plain files only"),
        (zipped(("folder/", b"", 0o040755)), "plain files only"),
        (zipped(("twice", b"1", 0o100644), ("twice", b"2", 0o100644)), "twice"),
        (zipped(("other", b"", 0o100644), mlmodel=False), "no MLmodel"),
        (changed(zipped(), 6, 200), "not an archive"),  # "version needed": 20.0
        (changed(zipped(), 8, 1), "another way"),  # encrypted
        (changed(zipped(), 10, 12), "another way"),  # bzip2
        (b"PK\x03\x04 and nothing more", "not an archive"),
        (b"", "not an archive"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_pack_would_not_write_is_refused_before_a_byte_is_written(
    data: bytes, says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BadInput, match=says):
        unpack(data, out)
    assert not list(out.iterdir())


def test_sizes_are_bounded_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1000)
    with pytest.raises(BadInput, match="too large"):
        check_archive(zipped(("zeros", bytes(2000), 0o100644)))
    monkeypatch.setattr(archive, "MAX_ENTRIES", 2)
    with pytest.raises(BadInput, match="too large"):
        check_archive(zipped(("a", b"", 0o100644), ("b", b"", 0o100644)))


def test_a_folder_with_a_link_or_without_a_model_is_not_packed(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(Tampered, match="no links"):
        pack(folder)
    with pytest.raises(BadInput, match="no MLmodel"):
        pack(tmp_path)
