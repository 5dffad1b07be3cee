"""An S3 service on loopback: moto's server in a process of its own, gone with the process that started it.

Run as ``python s3.py PORT`` with a pipe as its input, it is that process: it ends when the pipe closes. Buckets are
made over plain HTTP, so that the tests need no client besides the one under test.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, Self

if __name__ != "__main__":
    from tests.servers.room import free_port, wait_until

PATIENCE_S = 60.0
"""How long the server may take to start or to end, in seconds: it imports a lot."""

CREDENTIALS = {"access_key_id": "AKIALOOPBACK", "secret_access_key": "a-secret-that-nobody-may-see"}
"""What clients sign with. The server takes any."""


class S3Server:
    """An S3 service of its own on 127.0.0.1, started by ``with``. What it keeps is in its memory."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.endpoint = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and return when it answers."""
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self._port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, lambda: "the S3 server did not start", PATIENCE_S)

    def close(self) -> None:
        """End the server. No-op the second time."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(PATIENCE_S)
        self._process = None

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        self._request("PUT", f"/{name}")
        return name

    def unfinished(self, bucket: str) -> int:
        """How many uploads in parts were begun in a bucket, and neither completed nor called off."""
        return self._request("GET", f"/{bucket}?uploads").count(b"<UploadId>")

    def options(self) -> dict[str, Any]:
        """What a client must be told to get here: the keyword arguments of ``from_url``."""
        return client_options(self.endpoint)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {self._process.returncode}: is moto[server] installed?")
        try:
            self._request("GET", "/")
        except ConnectionError:
            return False
        return True

    def _request(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            said = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"the S3 server answered {method} {path} with {answer.status}: {said!r}")
        return said


def client_options(endpoint: str) -> dict[str, Any]:
    """The keyword arguments of ``from_url`` for an S3 service at an address without TLS."""
    return {
        "endpoint": endpoint,
        "region": "us-east-1",
        "virtual_hosted_style_request": False,
        "client_options": {"allow_http": True},
        **CREDENTIALS,
    }


def main(port: int) -> None:
    """Serve until the standard input ends, which is when its owner does."""
    from moto.server import main as serve  # noqa: PLC0415 - only the process that serves needs it

    def outlive_nobody() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=outlive_nobody, daemon=True).start()
    serve(["-H", "127.0.0.1", "-p", str(port)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
