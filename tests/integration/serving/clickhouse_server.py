"""ClickHouse over HTTP: chDB (the engine itself, in this process) behind what clients use of its HTTP interface.

argv: folder, user, password. Prints the port. A GET of /refuse makes it answer 500 to every insert, /accept ends that.
"""

import base64
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import chdb
import lz4.frame


def plain(body: bytes, encoding: str) -> bytes:
    return bytes(lz4.frame.decompress(body)) if encoding == "lz4" else body


def handler(folder: str, user: str, password: str) -> type[BaseHTTPRequestHandler]:
    engine = chdb.connect(folder)
    refusing: list[bool] = []
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path in ("/refuse", "/accept"):
                refusing[:] = [True] if self.path == "/refuse" else []
                self.answer(200, b"")
            else:
                self.run(b"")

        def do_POST(self) -> None:
            self.run(plain(self.body(), self.headers.get("Content-Encoding", "")))

        def body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def run(self, body: bytes) -> None:
            given = base64.b64decode(self.headers.get("Authorization", "Basic ").split()[-1]).decode()
            if given != f"{user}:{password}":
                self.answer(403, b"Code: 516. DB::Exception: Authentication failed")
                return
            asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            statement = asked.pop("query", "")
            if body.startswith(b"INSERT"):
                head, _, body = body.partition(b"\n")
                statement = head.decode()
            elif not statement:
                statement, body = body.decode(), b""
            try:
                with one_at_a_time:
                    found = self.insert(statement, body, asked) if body else self.query(statement, asked)
                self.answer(200, found)
            except RuntimeError as error:
                self.answer(500, str(error).encode())

        def query(self, statement: str, asked: dict[str, str]) -> bytes:
            shape = asked.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated"
            return bytes(engine.query(statement, shape).bytes() or b"")

        def insert(self, statement: str, body: bytes, asked: dict[str, str]) -> bytes:
            if refusing:
                raise RuntimeError("Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space")
            settings = f"SETTINGS insert_deduplication_token = '{asked['insert_deduplication_token']}'"
            into, _, shape = statement.rpartition(" FORMAT ")
            with tempfile.NamedTemporaryFile(suffix=".native", delete=False) as file:
                file.write(body)
            try:
                engine.query(f"{into} FROM INFILE '{file.name}' {settings} FORMAT {shape}")
            finally:
                Path(file.name).unlink()
            return b""

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-ClickHouse-Summary", "{}")
            self.send_header("X-ClickHouse-Timezone", "UTC")
            if status >= 400:
                self.send_header("X-ClickHouse-Exception-Code", "243")
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main(folder: str, user: str, password: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folder, user, password))
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
