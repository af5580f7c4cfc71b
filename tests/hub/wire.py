"""Requests, answers and connections: HTTP as the test Hub speaks it."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
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
    token: str | None
    body: bytes = b""

    def flag(self, name: str) -> bool:
        """Whether a query parameter is switched on."""
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")


@dataclass
class Response:
    """What the server answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """HTTP status, message and, for what is not found, the Hub's error code."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.response = error_response(status, message, code, headers)


def json_response(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


def error_response(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The Hub says an error twice: as JSON and, for HEAD requests, in headers."""
    response = json_response({"error": message}, status)
    response.headers |= {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return response


class Listener(ThreadingHTTPServer):
    """The port that the Hub listens on."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.hub = hub
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

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


class Connection(BaseHTTPRequestHandler):
    """Reads requests, lets the faults at them, and answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: Listener

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        fault = hub.faults.strike(self.command, unquote(parts.path))
        size = int(self.headers.get("Content-Length", "0"))
        is_cut = fault is not None and fault.kind == "cut"
        body = self.rfile.read(size // 2 if is_cut else size)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, parts.path, parse_qs(parts.query), token, body)
        hub.requests.append(request)
        response = None if is_cut else hub.answer(request, fault)
        if response is None or (fault is not None and fault.kind == "lost_answer"):
            self._break_connection()
        else:
            self._send(response)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are recorded instead."""

    def _break_connection(self) -> None:
        """Reset the connection: no answer, no goodbye."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _send(self, response: Response) -> None:
        headers = {"Content-Length": str(len(response.body)), **response.headers}
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        body = b"" if self.command == "HEAD" else response.body
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
