"""Objects of a real S3 server (SeaweedFS), as S3 itself, as lakeFS's gateway and as a remote of DVC."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.data.source import resolve
from loopwright.data.sources import s3
from loopwright.kernel.digest import sha256_bytes
from loopwright.kernel.errors import BadInput, NotFound, Unavailable
from tests.object_store import S3Server


def test_an_object_is_the_same_delivery_as_the_file(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    uri = s3_server.put(s3_bucket, "in/a.csv", b"x,y\n1,2\n")
    source = resolve(uri, Path())
    assert source.digest == sha256_bytes(b"x,y\n1,2\n")
    staged = source.stage(tmp_path)
    assert staged.uri == uri and staged.rows.table(["x", "_row"]).to_pydict() == {"x": ["1"], "_row": [1]}


def test_a_prefix_and_a_glob_are_one_delivery_in_the_order_of_names(
    s3_server: S3Server, s3_bucket: str
) -> None:
    for day, row in (("02", b"b,2\n"), ("01", b"a,1\n")):
        s3_server.put(s3_bucket, f"in/2026/{day}.csv", b"x,y\n" + row)
    s3_server.put(s3_bucket, "in/2026/_SUCCESS", b"")
    s3_server.put(s3_bucket, "in/2026/notes.md", b"no rows")
    glob = resolve(f"s3://{s3_bucket}/in/*/*.csv", Path())
    assert glob.read().rows.to_pydict() == {"x": ["a", "b"], "y": ["1", "2"]}
    assert resolve(f"s3://{s3_bucket}/in/2026/0?.csv", Path()).digest == glob.digest
    assert resolve(f"s3://{s3_bucket}/**.csv", Path()).digest == glob.digest
    with pytest.raises(BadInput, match=r"in/2026/notes\.md"):
        resolve(f"s3://{s3_bucket}/in/2026/", Path())


def test_parquet_of_several_files_keeps_its_types(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    for number, kind in enumerate((pa.int32(), pa.int64())):
        file = io.BytesIO()
        pq.write_table(pa.table({"x": pa.array([number], kind)}), file)
        s3_server.put(s3_bucket, f"p/{number}.parquet", file.getvalue())
    staged = resolve(f"s3://{s3_bucket}/p/", Path()).stage(tmp_path)
    assert staged.rows.schema.field("x").type == pa.int64() and staged.rows.table(["x"]).column(
        "x"
    ).to_pylist() == [0, 1]


def test_an_object_larger_than_a_range_comes_whole(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "RANGE", 1000)
    data = b"x\n" + b"".join(b"%d\n" % n for n in range(5000))
    assert resolve(s3_server.put(s3_bucket, "a.csv", data), Path()).digest == sha256_bytes(data)


def test_what_is_not_there_says_so(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.put(s3_bucket, "in/flights.csv", b"x\n1\n")
    with pytest.raises(NotFound, match=r"did you mean `flights\.csv`"):
        resolve(f"s3://{s3_bucket}/in/flihgts.csv", Path())
    with pytest.raises(NotFound, match="no object matches"):
        resolve(f"s3://{s3_bucket}/out/", Path())
    with pytest.raises((NotFound, Unavailable)):
        resolve("s3://no-such-bucket/a.csv", Path())
    with pytest.raises(BadInput, match="not a bucket"):
        resolve("s3:///a.csv", Path())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Unavailable, match="does not let us in"):
        resolve(f"s3://{s3_bucket}/in/flights.csv", Path())


class Api(BaseHTTPRequestHandler):
    """The one call of lakeFS's API that is made: the newest commit of a ref."""

    commits: ClassVar[dict[str, str]] = {}

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        found = self.commits.get(self.path)
        body = {"results": [{"id": found}]} if found else {"message": "not found"}
        data = json.dumps(body).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_lakefs_is_read_through_its_gateway(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SeaweedFS under a gateway's layout: bucket = repository, key = ref/path. It has no API, so the ref stands."""
    monkeypatch.setenv("LAKEFS_ENDPOINT", s3_server.endpoint + "/")
    monkeypatch.setenv("LAKECTL_CREDENTIALS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", s3_server.secret_key)
    s3_server.put(s3_bucket, "main/in/a.csv", b"x\n1\n")
    source = resolve(f"lakefs://{s3_bucket}/main/in/*.csv", Path())
    assert source.stage(tmp_path).origin == {
        "lakefs_repository": s3_bucket, "lakefs_ref": "main", "lakefs_path": "in/*.csv",
    }  # fmt: skip
    assert source.read().input_rows == 1


def test_a_ref_of_lakefs_is_pinned_to_its_commit(
    s3_server: S3Server, s3_bucket: str, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopwright.data.sources import lakefs

    commit = "ab" * 32
    monkeypatch.setattr(
        Api, "commits", {f"/api/v1/repositories/{s3_bucket}/refs/main/commits?amount=1": commit}
    )
    monkeypatch.setenv("LAKEFS_ENDPOINT", api + "/api/v1")
    monkeypatch.setattr(lakefs, "_gateway", lambda *_: s3_server.filesystem())
    s3_server.put(s3_bucket, f"{commit}/a.csv", b"x\n1\n")
    source = resolve(f"lakefs://{s3_bucket}/main/a.csv", Path())
    assert source.origin["lakefs_commit"] == commit and source.read().input_rows == 1
    with pytest.raises(NotFound, match="no such repository or ref"):
        resolve(f"lakefs://{s3_bucket}/gone/a.csv", Path())


def test_lakefs_without_a_server_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAKEFS_ENDPOINT", "LAKECTL_SERVER_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadInput, match="LAKEFS_ENDPOINT is not set"):
        resolve("lakefs://repo/main/a.csv", Path())
    with pytest.raises(BadInput, match="not a lakeFS source"):
        resolve("lakefs://repo/main", Path())
