"""A folder into a repository in one commit; whatever goes wrong, the branches stay as they were."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from transformers.utils import logging

from .messages import CLIENT_ERRORS, CREATING, Failure, HubError, hub_error

logger = logging.get_logger(__name__)

T = TypeVar("T")

# Weights of an earlier push, in one file or in several; Transformers would find them beside the new ones.
_STALE = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.pt", "*.pth")
_SECONDS_BEFORE_A_WORD = 30.0
_PULL_REQUESTS_TO_LOOK_AT = 5


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a push goes, and how.

    Attributes:
        api: the client.
        repo_id: the repository.
        revision: the branch; None for main.
        create_pr: whether to open a pull request.
        private: whether a new repository is private.
        overwrite: whether to replace a model that is not compact.
    """

    api: HfApi
    repo_id: str
    revision: str | None = None
    create_pr: bool = False
    private: bool | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Landed:
    """A commit that was made."""

    repo_id: str
    commit: str
    pr_url: str | None


@dataclasses.dataclass(frozen=True)
class _Head:
    """What the push is put on top of.

    Attributes:
        commit: the hash of the newest commit.
        files: the files there.
        new_repository: whether this push has made the repository.
        new_branch: whether the branch is still to be made.
    """

    commit: str
    files: tuple[str, ...]
    new_repository: bool = False
    new_branch: bool = False


def commit_folder(target: Target, folder: Path, title: str) -> Landed:
    """Put all files of a folder into a repository in one commit."""
    if "/" not in target.repo_id:
        name = _attempt(target, "asking who you are", target.api.whoami)["name"]
        target = dataclasses.replace(target, repo_id=f"{name}/{target.repo_id}")
    head = _prepare(target)
    paths = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file)) for path, file in paths.items()]
    stale = [name for name in head.files if name not in paths and any(fnmatch.fnmatch(name, p) for p in _STALE)]
    if head.new_branch:
        _attempt(
            target,
            "making the branch",
            lambda: target.api.create_branch(target.repo_id, branch=str(target.revision), revision=head.commit),
        )
    try:
        with _a_word_after_a_while(target.repo_id):
            info = target.api.create_commit(
                target.repo_id,
                [*additions, *(CommitOperationDelete(path_in_repo=name) for name in stale)],
                commit_message=title,
                revision=target.revision,
                create_pr=target.create_pr,
                parent_commit=head.commit,
            )
    except CLIENT_ERRORS as error:
        failure = Failure(error, "sending the files", target.repo_id, target.api, target.revision)
        return _after_failure(target, head, failure, additions)
    return Landed(target.repo_id, str(info.oid), info.pr_url)


def _attempt(target: Target, step: str, action: Callable[[], T]) -> T:
    """Do something that changes no branch, with a clear error."""
    try:
        with _a_word_after_a_while(target.repo_id):
            return action()
    except CLIENT_ERRORS as error:
        failure = Failure(error, step, target.repo_id, target.api, target.revision)
        raise hub_error(failure, "Nothing was committed.") from error


def _prepare(target: Target) -> _Head:
    """Find the repository and the branch, or make them, and refuse what must not be written to."""
    api, repo_id = target.api, target.repo_id

    def look() -> Any:
        with contextlib.suppress(RepositoryNotFoundError):
            return api.repo_info(repo_id)
        return None

    info = _attempt(target, "looking for the repository", look)
    is_new = info is None
    if is_new:
        if target.create_pr:
            raise HubError(f"{repo_id} does not exist, so it takes no pull request. Push without `create_pr`.", 404)
        _attempt(target, CREATING, lambda: api.create_repo(repo_id, private=target.private))
        info = _attempt(target, "looking at the new repository", lambda: api.repo_info(repo_id))
    elif target.private and not info.private:
        raise HubError(
            f"{repo_id} is public, but `private` was asked for. Nothing was committed. "
            "Make it private on the Hub, or choose another name."
        )
    files = _names(info)
    if not is_new and not target.create_pr and not target.overwrite:
        _refuse_other_models(target, info.sha, files)
    if target.revision is None:
        return _Head(info.sha, files, new_repository=is_new)

    # A branch that is not there is made; a pull request is not.
    may_miss = () if target.revision.startswith("refs/") else (RevisionNotFoundError,)

    def look_at_branch() -> Any:
        with contextlib.suppress(*may_miss):
            return api.repo_info(repo_id, revision=target.revision)
        return None

    branch = _attempt(target, "looking for the branch", look_at_branch)
    if branch is None:
        return _Head(info.sha, files, new_repository=is_new, new_branch=True)
    return _Head(branch.sha, _names(branch), new_repository=is_new)


def _names(info: Any) -> tuple[str, ...]:
    return tuple(sibling.rfilename for sibling in info.siblings or ())


def _refuse_other_models(target: Target, commit: str, files: tuple[str, ...]) -> None:
    """Raise if the repository holds a model that is not compact: it would be half overwritten."""
    model_type = None
    if "config.json" in files:
        path = _attempt(
            target,
            "looking at what the repository holds",
            lambda: hf_hub_download(
                target.repo_id, "config.json", revision=commit, token=target.api.token, endpoint=target.api.endpoint
            ),
        )
        try:
            model_type = str(json.loads(Path(path).read_text(encoding="utf-8")).get("model_type"))
        except (ValueError, AttributeError):
            model_type = "unreadable"
    elif any(fnmatch.fnmatch(name, pattern) for name in files for pattern in _WEIGHTS):
        model_type = "unknown"
    if model_type is not None and not model_type.startswith("compact-"):
        raise HubError(
            f"The name {target.repo_id} is taken: the repository holds another model ({model_type}), which is not "
            "compact. Nothing was committed. Choose another name, or pass `overwrite=True` (`--overwrite`)."
        )


def _after_failure(target: Target, head: _Head, failure: Failure, additions: list[CommitOperationAdd]) -> Landed:
    """Find out whether the commit was made all the same; if not, tidy up and raise."""
    state = "is new and empty" if head.new_repository else "is as it was"
    left = f"Nothing was committed: {target.repo_id} {state}."
    if failure.is_undecided:
        try:
            landed = _landed(target, head, additions)
        except CLIENT_ERRORS:
            where = f"{target.api.endpoint}/{target.repo_id}"
            raise hub_error(
                failure, f"Whether the commit was made could not be found out: look at {where} first."
            ) from failure.error
        if landed is not None:
            logger.warning(f"The Hub's answer was lost, but commit {landed.commit} was made in {target.repo_id}.")
            return landed
    if head.new_branch and not _branch_removed(target, head):
        left = f"Nothing was committed, but the new branch {target.revision!r} is there."
    raise hub_error(failure, left) from failure.error


def _branch_removed(target: Target, head: _Head) -> bool:
    """Delete the branch that this push made, unless somebody has committed to it."""
    try:
        if target.api.repo_info(target.repo_id, revision=target.revision).sha != head.commit:
            return False
        target.api.delete_branch(target.repo_id, branch=str(target.revision))
    except CLIENT_ERRORS:
        return False
    return True


def _landed(target: Target, head: _Head, additions: list[CommitOperationAdd]) -> Landed | None:
    """Return the commit if a branch, or a new pull request, holds exactly the files that were sent."""
    api, repo_id = target.api, target.repo_id
    if not target.create_pr:
        commit = str(api.repo_info(repo_id, revision=target.revision).sha)
        found = commit != head.commit and _holds(api, repo_id, commit, additions)
        return Landed(repo_id, commit, None) if found else None
    requests = api.get_repo_discussions(repo_id, discussion_type="pull_request")
    for request, _ in zip(requests, range(_PULL_REQUESTS_TO_LOOK_AT), strict=False):
        reference = f"refs/pr/{request.num}"
        if _holds(api, repo_id, reference, additions):
            commit = str(api.repo_info(repo_id, revision=reference).sha)
            return Landed(repo_id, commit, f"{api.endpoint}/{repo_id}/discussions/{request.num}")
    return None


def _holds(api: HfApi, repo_id: str, revision: str, additions: list[CommitOperationAdd]) -> bool:
    tree = {item.path: item for item in api.list_repo_tree(repo_id, recursive=True, revision=revision)}
    return all(_is_same(tree.get(addition.path_in_repo), addition) for addition in additions)


def _is_same(there: Any, addition: CommitOperationAdd) -> bool:
    if not isinstance(there, RepoFile):
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == addition.upload_info.sha256.hex())
    content = Path(str(addition.path_or_fileobj)).read_bytes()
    # Git names a file by this hash; nothing here rests on its strength.
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())


@contextlib.contextmanager
def _a_word_after_a_while(repo_id: str) -> Iterator[None]:
    """Say so while the Hub takes long: the client waits for an answer without limit."""
    done = threading.Event()

    def remind() -> None:
        waited = 0.0
        while not done.wait(_SECONDS_BEFORE_A_WORD):
            waited += _SECONDS_BEFORE_A_WORD
            logger.warning(
                f"Still waiting for the Hub to take or answer what was sent to {repo_id} ({waited:.0f} s). "
                "Interrupting leaves its branches as they are."
            )

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
