"""A Hugging Face Hub on 127.0.0.1 that the unmodified client talks to, and that fails when it is told to."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from . import routes_files, routes_repos, routes_upload
from .accounts import Account, account_of
from .faults import Fault, FaultPlan, corrupted
from .routing import HUB, STORAGE, Call
from .store import Commit, Repository, Store, StoredFile
from .wire import HubError, Listener, Request, RequestRecord, Response, error_response

__all__ = ["Account", "Fault", "HubServer", "RequestRecord"]

# Importing them fills the tables.
ROUTE_MODULES = (routes_files, routes_repos, routes_upload)


class HubServer:
    """The test Hub: use it as a context manager, or `start()` and `stop()` it.

    Large files live behind a second address, as they do at huggingface.co: uploads go to signed addresses
    there, and downloads are redirected to it without the token.
    """

    user = "tester"
    write_token = "hf_tester_write"
    read_token = "hf_tester_read"
    other_token = "hf_other_write"  # may write, but owns nothing of the user's

    def __init__(self) -> None:
        self.store = Store()
        self.faults = FaultPlan()
        self.requests: list[RequestRecord] = []
        self.crashes: list[BaseException] = []  # errors of the server itself: a test must leave this empty
        self.tokens: dict[str, Account] = {
            self.write_token: Account(self.user),
            self.read_token: Account(self.user, role="read"),
            self.other_token: Account("other"),
        }
        self._secret = secrets.token_bytes(16)
        self._stopping = threading.Event()
        self._hub = Listener(self, to_storage=False)
        self._storage = Listener(self, to_storage=True)
        self.endpoint = self._hub.url
        self.storage_endpoint = self._storage.url

    def start(self) -> Self:
        self._hub.start()
        self._storage.start()
        return self

    def stop(self) -> None:
        """Stop, as if the network were gone: open connections break too."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._hub.stop()
            self._storage.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def inject(self, fault: Fault) -> Fault:
        """Put a fault in force; its `fired` counts how often it struck."""
        return self.faults.add(fault)

    def calls(self, method: str | None = None, path: str = "") -> list[RequestRecord]:
        """The requests so far with this method whose path matches the regular expression."""
        return [r for r in self.requests if method in (None, r.method) and re.search(path, r.path)]

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        return self.store.repositories[kind, repo_id]

    def seed(self, repo_id: str, files: Mapping[str, bytes], private: bool = False, kind: str = "model") -> Commit:
        """Put files into a repository without a client; the repository is made if need be."""
        with self.store.lock:
            if (kind, repo_id) not in self.store.repositories:
                self.store.create(kind, repo_id, private, self.user)
            repository = self.repository(repo_id, kind)
            parent = repository.resolve("main")
            stored = {path: self._stored(path, content) for path, content in files.items()}
            merged = {**parent.files, **stored}
            return repository.land("refs/heads/main", parent, merged, "Seed", "", self.user)

    def _stored(self, path: str, content: bytes) -> StoredFile:
        if not path.endswith((".safetensors", ".bin", ".onnx")):
            return StoredFile.regular(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.store.objects[sha256] = content
        return StoredFile.large(sha256, len(content))

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What is in a repository."""
        commit = self.repository(repo_id, kind).resolve(revision)
        return {path: self.store.content(stored) for path, stored in commit.files.items()}

    def titles(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[str]:
        """The titles of a repository's commits, newest first."""
        repository = self.repository(repo_id, kind)
        return [commit.title for commit in repository.history(repository.resolve(revision))]

    def refs(self, repo_id: str, kind: str = "model") -> dict[str, str]:
        """Branches, tags and pull requests with their commits: the same before and after means untouched."""
        return dict(self.repository(repo_id, kind).refs)

    def storage_url(self, method: str, sha256: str) -> str:
        """The signed address of a large object."""
        return f"{self.storage_endpoint}/lfs/{sha256}?signature={self._signature(method, sha256)}"

    def check_signature(self, request: Request, method: str, sha256: str) -> None:
        """Refuse what storage refuses: no signature, or a signature and a token together."""
        if "authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        if request.query.get("signature") != [self._signature(method, sha256)]:
            raise HubError(403, "SignatureDoesNotMatch")

    def _signature(self, method: str, sha256: str) -> str:
        return hmac.new(self._secret, f"{method} {sha256}".encode(), "sha256").hexdigest()

    def answer(self, request: Request, fault: Fault | None, to_storage: bool) -> Response:
        """Carry out a request, with the fault that strikes it."""
        kind = fault.kind if fault is not None else None
        if fault is not None and kind == "slow":
            self._stopping.wait(fault.delay)
        if fault is not None and kind == "status":
            return fault.response(request, self.endpoint)
        if kind == "corrupt" and request.method == "PUT":
            request = replace(request, body=corrupted(request.body))
        try:
            handler, names = (STORAGE if to_storage else HUB).find(request)
            account = None if to_storage else account_of(request.token, self.tokens)
            with self.store.lock:
                response = handler(Call(self, request, account, names))
        except HubError as refusal:
            response = error_response(refusal.status, refusal.message, refusal.code, refusal.headers)
        if kind == "corrupt" and request.method != "PUT":
            response.body = corrupted(response.body)
        return response
