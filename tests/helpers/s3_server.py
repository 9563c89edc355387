"""An S3 of moto on this machine, and a connection to it that goes wrong as it is told."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from local_server import serving

# Of method, path and how often it was asked for before: "", "503", "torn" or "wrong".
Fault = Callable[[str, str, int], str]
REGION = "eu-west-1"


@contextmanager
def bucket(name: str) -> Iterator[dict[str, str]]:
    """Yield the variables that lead to an S3 with an empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        **{"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION},
        **{"AWS_ENDPOINT": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"},
    }
    reset = Request(f"{variables['AWS_ENDPOINT']}/moto-api/reset", method="POST")
    urlopen(reset).close()  # servers of one process share their buckets
    try:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client = boto3.client(
            "s3", endpoint_url=variables["AWS_ENDPOINT"], region_name=REGION, **keys
        )
        client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        yield variables
    finally:
        server.stop()


@contextmanager
def between(endpoint: str, fault: Fault) -> Iterator[str]:
    """Yield an endpoint that passes requests on, and answers or changes some of them."""
    asked: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                before = asked[self.command, self.path]
                asked[self.command, self.path] += 1
            kind = fault(self.command, self.path, before)
            if kind == "503":
                self.send_error(503)
                return
            if kind == "wrong" and self.command == "PUT":
                body = body[:-1] + bytes([body[-1] ^ 1])
            connection = HTTPConnection(urlsplit(endpoint).netloc)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            dropped = ("transfer-encoding", "content-length", "connection", "date", "server")
            for name, value in answer.getheaders():
                if name.lower() not in dropped:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if kind == "torn" and self.command == "GET":
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815 (their names)

    with serving(Handler) as address:
        yield address
