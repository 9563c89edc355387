"""A web server of a folder that goes wrong as it is told."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from local_server import serving

# Of a path and how often it was asked for before: status, and the body that is sent of the file's.
Fault = Callable[[str, int], tuple[int, Callable[[bytes], bytes]]]


def whole(content: bytes) -> bytes:
    """The body as it is."""
    return content


@contextmanager
def served(folder: Path, fault: Fault) -> Iterator[tuple[str, Counter[str]]]:
    """Yield the address, and how often each path was asked for."""
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            with lock:
                before = asked[name]
                asked[name] += 1
            if not (folder / name).is_file():
                self.send_error(404)
                return
            status, body_of = fault(name, before)
            if status != 200:
                self.send_error(status)
                return
            content = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Last-Modified", "Mon, 02 Nov 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body_of(content))
            self.close_connection = True

    with serving(Handler) as address:
        yield address, asked
