"""Faults that the test Hub plays on the requests that match them."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

from .wire import Response, error_response

# The words huggingface.co uses, so that a test reads what a user would read.
MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Forbidden: you must use a write token to upload to a repository.",
    404: "Repository not found",
    412: "A commit has happened since. Please refresh and try again.",
    429: "We had to rate limit you. Please retry later.",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
}


@dataclass(kw_only=True)
class Fault:
    """One thing that goes wrong, for the requests whose method and path match.

    Kinds:
        status: the request is not carried out and answered with `status`.
        cut: the connection breaks in the middle of the request's body, or before the answer where it has none.
        lost_answer: the request is carried out, then the connection breaks before the answer.
        slow: the request is carried out after `delay` seconds.
        corrupt: one bit of the content flips: in a PUT body on its way to storage, in the answer's body else.
    """

    kind: Literal["status", "cut", "lost_answer", "slow", "corrupt"]
    method: str | None = None
    path: str = ""  # a regular expression searched in the decoded path, without the query
    status: int = 500
    message: str | None = None
    error_code: str | None = None
    retry_after: int | None = None
    delay: float = 0.0
    after: int = 0  # so many matching requests pass before the first fault
    times: int | None = 1  # None: from then on always
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts it."""
        if self.method not in (None, method) or re.search(self.path, path) is None:
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True

    def response(self) -> Response:
        """The answer of a `status` fault."""
        message = self.message or MESSAGES.get(self.status, f"Error {self.status}")
        code = self.error_code or ("RepoNotFound" if self.status == 404 else None)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return error_response(self.status, message, code, headers)


def corrupted(content: bytes) -> bytes:
    """The same content with one bit flipped in its middle."""
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    return bytes(damaged)


class FaultPlan:
    """The faults in force; the first that strikes a request wins."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def strike(self, method: str, path: str) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.strikes(method, path)), None)
