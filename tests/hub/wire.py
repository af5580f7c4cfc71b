"""Requests, answers and connections: HTTP as the test Hub speaks it."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import threading
import uuid
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from .server import HubServer


@dataclass(frozen=True)
class Request:
    """What a client asks; `path` is still percent-encoded."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes = b""

    def flag(self, name: str) -> bool:
        """Whether a query parameter is switched on."""
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body or b"{}")
        return value

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None


@dataclass
class Response:
    """What the server answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestRecord:
    """One request as the server saw it; `status` is None where the connection broke before an answer."""

    method: str
    path: str
    status: int | None
    fault: str | None
    query: dict[str, list[str]]
    authorized: bool
    to_storage: bool
    body_size: int


class HubError(Exception):
    """A refusal: HTTP status, message and, for what is not found, the Hub's error code."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


def json_response(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


def error_response(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The Hub says an error twice: as JSON and, for HEAD requests, in headers."""
    response = json_response({"error": message}, status)
    response.headers["X-Error-Message"] = message.replace("\n", " ")
    if code is not None:
        response.headers["X-Error-Code"] = code
    response.headers.update(headers or {})
    return response


def content_response(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """A file, or the byte range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if wanted is None or wanted.groups() == ("", ""):
        return Response(200, content, headers)
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= stop:
        return Response(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return Response(206, content[start:stop], headers)


class Listener(ThreadingHTTPServer):
    """One listening port: the Hub itself, or its storage."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, to_storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = hub
        self.to_storage = to_storage
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and break what is still connected: no client talks on over a kept connection."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it is closed already

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what broke in the server for the test to see; a client that went away is no error."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.crashes.append(error)


class HubHandler(BaseHTTPRequestHandler):
    """Reads a request, lets the faults at it, and answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: Listener

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are recorded instead."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        fault = self.server.hub.faults.strike(self.command, unquote(parts.path))
        kind = fault.kind if fault is not None else None
        request = Request(
            method=self.command,
            path=parts.path,
            query=parse_qs(parts.query),
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        if kind == "cut" and self._has_body():
            self._record(request, None, kind, self._read_half_of_the_body())
            self._break_connection()
            return
        request = Request(request.method, request.path, request.query, request.headers, self._read_body())
        response = self.server.hub.answer(request, fault, self.server.to_storage)
        unanswered = kind == "cut" and (request.method == "HEAD" or not response.body)
        if kind == "lost_answer" or unanswered:
            self._record(request, None, kind, len(request.body))
            self._break_connection()
            return
        self._record(request, response.status, kind, len(request.body))
        self._send(response, cut=kind == "cut")

    def _record(self, request: Request, status: int | None, fault: str | None, body_size: int) -> None:
        # Before the answer leaves: a test that has the answer must find the record.
        self.server.hub.requests.append(
            RequestRecord(
                method=request.method,
                path=unquote(request.path),
                status=status,
                fault=fault,
                query=request.query,
                authorized="authorization" in request.headers,
                to_storage=self.server.to_storage,
                body_size=body_size,
            )
        )

    def _is_chunked(self) -> bool:
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _has_body(self) -> bool:
        return self._is_chunked() or int(self.headers.get("Content-Length", "0")) > 0

    def _read_body(self) -> bytes:
        if not self._is_chunked():
            return self._read_exactly(int(self.headers.get("Content-Length", "0")))
        chunks: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self._read_exactly(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue  # trailers
        return b"".join(chunks)

    def _read_half_of_the_body(self) -> int:
        if self._is_chunked():
            size = int(self.rfile.readline().split(b";")[0], 16)
        else:
            size = int(self.headers["Content-Length"])
        return len(self._read_exactly(size // 2))

    def _read_exactly(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionAbortedError("the client went away in the middle of its request")
        return content

    def _break_connection(self) -> None:
        """Reset the connection: no answer, no goodbye."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _send(self, response: Response, cut: bool) -> None:
        headers = {
            "Content-Length": str(len(response.body)),
            "X-Request-Id": f"Root=1-{uuid.uuid4()}",
            **response.headers,
        }
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        message = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        body = b"" if self.command == "HEAD" else response.body
        if cut:
            # A quiet end, not a reset: what was sent so far reaches the client.
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(message + body)
