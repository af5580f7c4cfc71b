"""A Hugging Face Hub on 127.0.0.1 that the unmodified client talks to, and that fails as a test asks it to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

from .faults import Fault, FaultPlan, corrupted
from .routes import Account, Call, find_endpoint
from .store import Commit, Repository, Store, StoredFile
from .wire import Listener, Refusal, Request, Response


class HubServer:
    """The test Hub: use it as a context manager."""

    user = "tester"
    write_token = "hf_tester_write"
    read_token = "hf_tester_read"
    other_token = "hf_other_write"  # may write, but owns nothing of the user's

    def __init__(self) -> None:
        self.store = Store()
        self.faults = FaultPlan()
        self.requests: list[Request] = []
        self.crashes: list[BaseException] = []  # errors of the server itself: a test must leave this empty
        self.tokens: dict[str, Account] = {
            self.write_token: Account(self.user),
            self.read_token: Account(self.user, role="read"),
            self.other_token: Account("other"),
        }
        self._stopping = threading.Event()
        self._listener = Listener(self)
        self.endpoint = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def stop(self) -> None:
        """Stop, as if the network were gone: open connections break too."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._listener.stop()

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def inject(self, fault: Fault) -> Fault:
        """Put a fault in force; its `fired` counts how often it struck."""
        return self.faults.add(fault)

    def repository(self, repo_id: str) -> Repository:
        return self.store.repositories[repo_id]

    def seed(self, repo_id: str, files: Mapping[str, bytes]) -> Commit:
        """Put files into a repository without a client; the repository is made if need be."""
        with self.store.lock:
            if repo_id not in self.store.repositories:
                self.store.create(repo_id, private=False)
            repository = self.repository(repo_id)
            parent = repository.resolve("main")
            stored = {path: self._stored(path, content) for path, content in files.items()}
            return repository.land("refs/heads/main", parent, {**parent.files, **stored}, "Seed")

    def _stored(self, path: str, content: bytes) -> StoredFile:
        if not path.endswith(".safetensors"):
            return StoredFile.regular(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.store.objects[sha256] = content
        return StoredFile.large(sha256, len(content))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What is in a repository."""
        commit = self.repository(repo_id).resolve(revision)
        return {path: self.store.content(stored) for path, stored in commit.files.items()}

    def titles(self, repo_id: str, revision: str = "main") -> list[str]:
        """The titles of a repository's commits, newest first."""
        repository = self.repository(repo_id)
        return [commit.title for commit in repository.history(repository.resolve(revision))]

    def refs(self, repo_id: str) -> dict[str, str]:
        """Branches and pull requests with their commits: the same before and after means untouched."""
        return dict(self.repository(repo_id).refs)

    def answer(self, request: Request, fault: Fault | None) -> Response:
        """Carry out a request, with the fault that strikes it."""
        kind = fault.kind if fault is not None else None
        if fault is not None and kind == "slow":
            self._stopping.wait(fault.delay)
        if fault is not None and kind == "status":
            return fault.response()
        if kind == "corrupt" and request.method == "PUT":
            request = replace(request, body=corrupted(request.body))
        try:
            if request.token is not None and request.token not in self.tokens:
                raise Refusal(401, "Invalid credentials in Authorization header")
            function, names = find_endpoint(request)
            with self.store.lock:
                response = function(Call(self, request, self.tokens.get(request.token or ""), names))
        except Refusal as refusal:
            response = refusal.response
        if kind == "corrupt" and request.method != "PUT":
            response.body = corrupted(response.body)
        return response
