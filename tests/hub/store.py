"""What the test Hub keeps: repositories with commits, branches, tags and pull requests, and large objects."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .wire import HubError

DEFAULT_GIT_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in (
        "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack "
        "*.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors "
        "saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
    ).split()
)
_serial = itertools.count()


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def git_blob_id(content: bytes) -> str:
    """The object id git gives to a file's content."""
    return _sha1(b"blob %d\0" % len(content) + content)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit: its content itself, or the sha256 of a large object."""

    size: int
    blob_id: str
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> StoredFile:
        return cls(size=len(content), blob_id=git_blob_id(content), content=content)

    @classmethod
    def large(cls, sha256: str, size: int) -> StoredFile:
        return cls(size=size, blob_id=git_blob_id(_pointer(sha256, size)), sha256=sha256)

    @property
    def pointer_size(self) -> int:
        return len(_pointer(self.sha256 or "", self.size))

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


Tree = Mapping[str, StoredFile]


@dataclass(frozen=True)
class Commit:
    """A state of a repository, and how it came about."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Tree


@dataclass
class Discussion:
    """A discussion; a pull request when it has a base."""

    number: int
    title: str
    description: str
    author: str
    created_at: str
    base: str | None = None  # the branch that a pull request wants to change
    status: str = "open"
    merge_commit: str | None = None


@dataclass
class Repository:
    """A repository; `refs` maps `refs/heads/…`, `refs/tags/…` and `refs/pr/…` to commits."""

    kind: str
    repo_id: str
    private: bool
    created_at: str = field(default_factory=now)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a pull request or the beginning of an object id names."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if len(revision) >= 5:
            for oid, commit in self.commits.items():
                if oid.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def writable_ref(self, revision: str) -> str:
        """The full name of a branch or a pull request."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def land(self, ref: str, parent: Commit | None, files: Tree, title: str, message: str, author: str) -> Commit:
        """Add a commit and move the ref to it: the one place where a repository changes."""
        date = now()
        listing = "".join(f"{path}\0{files[path].blob_id}\n" for path in sorted(files))
        identity = f"{listing}{parent and parent.oid}{title}{message}{author}{date}{next(_serial)}"
        oid = _sha1(identity.encode())
        commit = Commit(oid, parent.oid if parent else None, title, message, author, date, dict(files))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and what came before it, newest first."""
        step: Commit | None = commit
        while step is not None:
            yield step
            step = self.commits[step.parent] if step.parent else None

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that brought a path (a file, or a folder) to its present state."""

        def state(files: Tree) -> dict[str, str]:
            return {name: f.blob_id for name, f in files.items() if name == path or name.startswith(f"{path}/")}

        changed = commit
        for step in self.history(commit):
            if state(step.files) != state(commit.files):
                break
            changed = step
        return changed

    def open_discussion(self, title: str, description: str, author: str, base: str | None) -> Discussion:
        discussion = Discussion(len(self.discussions) + 1, title, description, author, now(), base)
        self.discussions.append(discussion)
        return discussion

    def discussion(self, number: int) -> Discussion:
        if not 1 <= number <= len(self.discussions):
            raise HubError(404, "Discussion not found")
        return self.discussions[number - 1]

    def merge(self, number: int, author: str) -> Commit:
        """Bring what a pull request changed into its base branch."""
        request = self.discussion(number)
        if request.base is None or request.status != "open":
            raise HubError(409, "This pull request cannot be merged")
        head, target = self.resolve(f"refs/pr/{number}"), self.resolve(request.base)
        ancestors = {commit.oid for commit in self.history(target)}
        fork = next(commit for commit in self.history(head) if commit.oid in ancestors)
        files = dict(target.files)
        for path in {*fork.files, *head.files}:
            if fork.files.get(path) != head.files.get(path):
                files.pop(path, None)
                if path in head.files:
                    files[path] = head.files[path]
        title = f"{request.title} (#{number})"
        commit = self.land(self.writable_ref(request.base), target, files, title, "", author)
        request.status, request.merge_commit = "merged", commit.oid
        return commit


class Store:
    """All repositories by kind and name, and all large objects by sha256. Hold `lock` to change anything."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, kind: str, repo_id: str, private: bool, author: str) -> Repository:
        """A new repository with its initial commit."""
        if (kind, repo_id) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo: {repo_id}")
        repository = Repository(kind, repo_id, private)
        first = {".gitattributes": StoredFile.regular(DEFAULT_GIT_ATTRIBUTES.encode())}
        repository.land("refs/heads/main", None, first, "initial commit", "", author)
        self.repositories[kind, repo_id] = repository
        return repository

    def content(self, stored: StoredFile) -> bytes:
        """What is in a file."""
        if stored.sha256 is not None:
            return self.objects[stored.sha256]
        assert stored.content is not None
        return stored.content

    def is_intact(self, sha256: str, size: int) -> bool:
        """Whether a large object is there and is what its name says."""
        content = self.objects.get(sha256)
        return content is not None and len(content) == size and hashlib.sha256(content).hexdigest() == sha256
