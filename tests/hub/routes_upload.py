"""Endpoints that bring files in: how to send them, large objects, and the commit itself."""

from __future__ import annotations

import base64
import json
from fnmatch import fnmatch
from typing import Any

from .accounts import require_write
from .cards import check_card
from .routing import API, HUB, REVISION, STORAGE, WEB, Call
from .store import Commit, Repository, Store, StoredFile
from .wire import HubError, Response, json_response

LARGEST_REGULAR_FILE = 10_000_000


@HUB.add("POST", rf"{API}/preupload/{REVISION}")
def preupload(call: Call) -> Response:
    """How each file has to be sent, and what is there under its name."""
    repository, body = call.repository(), call.request.json()
    require_write(call.account, repository, call.request.flag("create_pr"))
    files = repository.resolve(call.names["revision"]).files

    def text(path: str) -> str:
        return call.hub.store.content(files[path]).decode() if path in files else ""

    attributes = [line.split() for line in text(".gitattributes").splitlines()]
    large = [words[0] for words in attributes if "filter=lfs" in words[1:]]
    ignored = [line.strip() for line in body.get("gitIgnore", text(".gitignore")).splitlines()]
    answers = []
    for file in body["files"]:
        path, existing = file["path"], files.get(file["path"])
        answer = {
            "path": path,
            "uploadMode": "lfs" if is_large(file, large) else "regular",
            "shouldIgnore": _matches(path, ignored),
        }
        answers.append({**answer, "oid": existing.etag} if existing else answer)
    return json_response({"files": answers})


def is_large(file: dict[str, Any], patterns: list[str]) -> bool:
    has_zeros = b"\0" in base64.b64decode(file["sample"])
    return _matches(file["path"], patterns) or file["size"] > LARGEST_REGULAR_FILE or has_zeros


def _matches(path: str, patterns: list[str]) -> bool:
    name = path.rsplit("/", 1)[-1]
    wanted = [pattern.rstrip("/") for pattern in patterns if pattern and not pattern.startswith("#")]
    return any(fnmatch(name, p) or fnmatch(path, p) or path.startswith(f"{p}/") for p in wanted)


@HUB.add("POST", rf"{WEB}\.git/info/lfs/objects/batch")
def start_large_uploads(call: Call) -> Response:
    """Where to send the large objects that are not there yet."""
    repository, body = call.repository(), call.request.json()
    require_write(call.account, repository, as_pull_request="ref" not in body)
    objects: list[dict[str, Any]] = []
    for wanted in body["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if not call.hub.store.is_intact(wanted["oid"], wanted["size"]):
            answer["actions"] = {
                "upload": {"href": call.hub.storage_url("PUT", wanted["oid"])},
                "verify": {"href": call.web_url(f"{repository.repo_id}.git/info/lfs/objects/verify")},
            }
        objects.append(answer)
    return json_response({"transfer": "basic", "objects": objects})


@STORAGE.add("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})")
def put_object(call: Call) -> Response:
    """Keep what came: whether it is what it should be, `verify_object` says."""
    call.hub.check_signature(call.request, "PUT", call.names["sha256"])
    call.hub.store.objects[call.names["sha256"]] = call.request.body
    return Response(200, b"", {"ETag": f'"{call.names["sha256"]}"'})


@HUB.add("POST", rf"{WEB}\.git/info/lfs/objects/verify")
def verify_object(call: Call) -> Response:
    body = call.request.json()
    require_write(call.account, call.repository(), as_pull_request=True)
    if not call.hub.store.is_intact(body["oid"], body["size"]):
        call.hub.store.objects.pop(body["oid"], None)
        raise HubError(422, f"Uploaded object {body['oid']} does not have the announced size and checksum")
    return json_response({})


@HUB.add("POST", rf"{API}/commit/{REVISION}")
def create_commit(call: Call) -> Response:
    """All operations in one step: nothing changes before each of them has been found good."""
    repository, revision = call.repository(), call.names["revision"]
    as_pull_request = call.request.flag("create_pr")
    account = require_write(call.account, repository, as_pull_request)
    operations = [json.loads(line) for line in call.request.body.split(b"\n") if line.strip()]
    header = next(operation["value"] for operation in operations if operation["key"] == "header")
    ref = repository.writable_ref(revision)
    parent = _parent(repository, repository.resolve(ref), header.get("parentCommit"), as_pull_request)
    files = dict(parent.files)
    for operation in operations:
        _apply(call.hub.store, files, operation["key"], operation["value"])
    title, message = header["summary"], header.get("description", "")
    answer: dict[str, Any] = {"success": True, "hookOutput": ""}
    if as_pull_request:
        discussion = repository.open_discussion(title, message, account.name, revision)
        ref = f"refs/pr/{discussion.number}"
        answer["pullRequestUrl"] = call.web_url(repository.repo_id, "discussions", str(discussion.number))
    commit = repository.land(ref, parent, files, title, message, account.name)
    answer |= {"commitOid": commit.oid, "commitUrl": call.web_url(repository.repo_id, "commit", commit.oid)}
    return json_response(answer)


def _parent(repository: Repository, head: Commit, expected: str | None, as_pull_request: bool) -> Commit:
    if expected is None or head.oid.startswith(expected):
        return head
    if as_pull_request:
        return repository.resolve(expected)
    raise HubError(412, "A commit has happened since. Please refresh and try again.")


def _apply(store: Store, files: dict[str, StoredFile], key: str, value: dict[str, Any]) -> None:
    """Carry out one operation of a commit on a copy of the parent's files."""
    if key == "header":
        return
    path = value["path"].strip("/")
    if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid path: {value['path']}")
    if key == "file":
        content = base64.b64decode(value["content"])
        if path == "README.md" and (errors := check_card(content.decode())[0]):
            raise HubError(400, f"Your push was rejected due to YAML metadata error: {errors[0]}")
        files[path] = StoredFile.regular(content)
    elif key == "lfsFile":
        stored = store.objects.get(value["oid"])
        if stored is None or not store.is_intact(value["oid"], len(stored)):
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = StoredFile.large(value["oid"], len(stored))
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        gone = [name for name in files if name.startswith(f"{path}/")]
        if not gone:
            raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")
