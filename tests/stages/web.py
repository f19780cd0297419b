"""A web server on this machine that breaks, lies and refuses as a test asks it to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What the server gives at each path, how it behaves, and what it was asked.

    `break_after` lists, for coming answers, after how many bytes of each the connection ends; `moved`
    leads from a path to another one, and `kind` is the Content-Type.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    ranges: bool = True
    length: bool = True
    kind: str = ""
    moved: dict[str, str] = field(default_factory=dict)
    errors: list[int] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def serving() -> Iterator[Web]:
    """A server in a thread, until the block ends."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            web.asked.append((self.path, asked))
            if web.errors:
                self.send_error(web.errors.pop(0))
                return
            if self.path in web.moved:
                self.send_response(302)
                self.send_header("Location", web.moved[self.path])
                self.end_headers()
                return
            content = web.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            condition = self.headers.get("If-Range")
            if asked and web.ranges and (condition is None or condition == web.etag):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            else:
                self.send_response(200)
            rest = content[start:]
            if web.length:
                self.send_header("Content-Length", str(len(rest)))
            if web.kind:
                self.send_header("Content-Type", web.kind)
            if web.etag:
                self.send_header("ETag", web.etag)
            self.end_headers()
            if web.break_after:
                rest = rest[: web.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
