"""What the test Hub keeps: repositories with their commits and branches, and large objects."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .wire import Refusal

LARGE_FILES = "*.bin *.gguf *.h5 *.onnx *.pickle *.pkl *.pt *.pth *.safetensors *.zip *tfevents*".split()
_GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_FILES)
_serial = itertools.count()


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _blob_id(content: bytes) -> str:
    return _sha1(b"blob %d\0" % len(content) + content)


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its content itself, or the sha256 of a large object."""

    size: int
    blob_id: str
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> StoredFile:
        return cls(size=len(content), blob_id=_blob_id(content), content=content)

    @classmethod
    def large(cls, sha256: str, size: int) -> StoredFile:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(size=size, blob_id=_blob_id(pointer), sha256=sha256)

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id


Files = Mapping[str, StoredFile]


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    parent: str | None
    title: str
    files: Files


@dataclass
class Repository:
    """A repository; `refs` maps `refs/heads/…` and `refs/pr/…` to commits."""

    repo_id: str
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    def ref(self, revision: str) -> str:
        """The full name of a branch or a pull request."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs:
                return ref
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a pull request or an object id names."""
        return self.commits[revision] if revision in self.commits else self.commits[self.refs[self.ref(revision)]]

    def land(self, ref: str, parent: Commit | None, files: Files, title: str) -> Commit:
        """Add a commit and move the ref to it: the one place where a repository changes."""
        oid = _sha1(f"{next(_serial)} {parent} {title} {sorted(files.items())}".encode())
        self.commits[oid] = Commit(oid, parent.oid if parent else None, title, dict(files))
        self.refs[ref] = oid
        return self.commits[oid]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and what came before it, newest first."""
        step: Commit | None = commit
        while step is not None:
            yield step
            step = self.commits[step.parent] if step.parent else None


class Store:
    """All repositories by name, and all large objects by sha256. Hold `lock` to change anything."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, repo_id: str, private: bool) -> Repository:
        """A new repository with its initial commit."""
        repository = self.repositories[repo_id] = Repository(repo_id, private)
        attributes = StoredFile.regular(_GIT_ATTRIBUTES.encode())
        repository.land("refs/heads/main", None, {".gitattributes": attributes}, "initial commit")
        return repository

    def content(self, stored: StoredFile) -> bytes:
        """What is in a file."""
        if stored.sha256 is not None:
            return self.objects[stored.sha256]
        assert stored.content is not None
        return stored.content

    def is_intact(self, sha256: str) -> bool:
        """Whether a large object is there and is what its name says."""
        return sha256 in self.objects and hashlib.sha256(self.objects[sha256]).hexdigest() == sha256
