"""The endpoints of the test Hub, with the answers and refusals of huggingface.co."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .cards import check_card
from .store import LARGE_FILES, Repository, StoredFile
from .wire import Refusal, Request, Response, json_response

if TYPE_CHECKING:
    from .server import HubServer

API = r"/api/models/(?P<repo>(?:[^/]+/)?[^/]+?)"
WEB = r"/(?P<repo>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
LARGEST_REGULAR_FILE = 10_000_000


@dataclass(frozen=True)
class Account:
    """What a token stands for."""

    name: str
    role: str = "write"


@dataclass(frozen=True)
class Call:
    """One request on its way to its endpoint; `names` are the decoded parts of its path."""

    hub: HubServer
    request: Request
    account: Account | None
    names: dict[str, str]

    def repository(self) -> Repository:
        """The repository that the path names, if this account may see it."""
        repository = self.hub.store.repositories.get(self.names["repo"])
        if repository is None or (repository.private and not self._owns(repository.namespace)):
            raise Refusal(404 if self.account else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, as_pull_request: bool = False) -> Repository:
        """The repository, if this account may change it; a pull request is open to every token that may write."""
        repository = self.repository()
        if self.require_account().role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if not self._owns(repository.namespace) and not as_pull_request:
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def require_account(self) -> Account:
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        return self.account

    def _owns(self, namespace: str) -> bool:
        return self.account is not None and self.account.name == namespace


Endpoint = Callable[[Call], Response]
ENDPOINTS: list[tuple[str, re.Pattern[str], Endpoint]] = []


def endpoint(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    def register(function: Endpoint) -> Endpoint:
        ENDPOINTS.append((method, re.compile(pattern), function))
        return function

    return register


def find_endpoint(request: Request) -> tuple[Endpoint, dict[str, str]]:
    """The endpoint for a request and the decoded parts of its path; HEAD is answered as GET."""
    wanted = "GET" if request.method == "HEAD" else request.method
    for method, pattern, function in ENDPOINTS:
        found = pattern.fullmatch(request.path) if method == wanted else None
        if found is not None:
            return function, {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
    raise Refusal(404, f"Sorry, we can't find the page you are looking for: {request.method} {request.path}")


@endpoint("GET", r"/api/whoami-v2")
def whoami(call: Call) -> Response:
    account = call.require_account()
    return json_response({"name": account.name, "orgs": [], "auth": {"accessToken": {"role": account.role}}})


@endpoint("GET", r"/api/agent-harnesses")
def list_harnesses(call: Call) -> Response:
    """The `hf` command asks for this list at its start."""
    return json_response({"standardEnvVars": [], "harnesses": {}})


@endpoint("POST", r"/api/validate-yaml")
def validate_card(call: Call) -> Response:
    errors = [{"message": message} for message in check_card(call.request.json()["content"])]
    return json_response({"errors": errors, "warnings": []}, 400 if errors else 200)


@endpoint("POST", r"/api/repos/create")
def create_repository(call: Call) -> Response:
    body, account = call.request.json(), call.require_account()
    namespace = body.get("organization") or account.name
    if account != Account(namespace):
        raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    repo_id = f"{namespace}/{body['name']}"
    is_new = repo_id not in call.hub.store.repositories
    if is_new:
        call.hub.store.create(repo_id, private=body.get("visibility") == "private")
    answer = {"url": f"{call.hub.endpoint}/{repo_id}"}
    return json_response(answer if is_new else answer | {"error": "You already created it"}, 200 if is_new else 409)


@endpoint("POST", rf"{API}/branch/(?P<name>[^/]+)")
def create_branch(call: Call) -> Response:
    repository, ref = call.writable(), f"refs/heads/{call.names['name']}"
    if ref in repository.refs:
        raise Refusal(409, f"Reference already exists: {ref}")
    repository.refs[ref] = repository.resolve(call.request.json().get("startingPoint") or "main").oid
    return json_response({})


@endpoint("GET", rf"{API}/tree/{REVISION}")
def list_tree(call: Call) -> Response:
    entries = []
    for path, stored in call.repository().resolve(call.names["revision"]).files.items():
        entry = {"type": "file", "path": path, "oid": stored.blob_id, "size": stored.size}
        if stored.sha256 is not None:
            entry["lfs"] = {"oid": stored.sha256, "size": stored.size, "pointerSize": 0}
        entries.append(entry)
    return json_response(entries)


@endpoint("GET", rf"{API}(?:/revision/{REVISION})?")
def get_repository(call: Call) -> Response:
    repository = call.repository()
    commit = repository.resolve(call.names.get("revision", "main"))
    return json_response(
        {
            "id": repository.repo_id,
            "sha": commit.oid,
            "private": repository.private,
            "tags": [],  # Trainer looks for a licence in them
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
    )


@endpoint("GET", rf"{WEB}/(?:resolve|raw)/{REVISION}/(?P<path>.+)")
def get_file(call: Call) -> Response:
    commit = call.repository().resolve(call.names["revision"])
    stored = commit.files.get(call.names["path"])
    headers = {"X-Repo-Commit": commit.oid}
    if stored is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    return Response(200, call.hub.store.content(stored), {**headers, "ETag": f'"{stored.etag}"'})


@endpoint("POST", rf"{API}/preupload/{REVISION}")
def preupload(call: Call) -> Response:
    """How each file has to be sent, and what is there under its name."""
    repository = call.writable(as_pull_request=call.request.flag("create_pr"))
    files = repository.resolve(call.names["revision"]).files
    answers = []
    for file in call.request.json()["files"]:
        answer = {"path": file["path"], "uploadMode": "lfs" if is_large(file) else "regular", "shouldIgnore": False}
        existing = files.get(file["path"])
        answers.append(answer | ({"oid": existing.etag} if existing else {}))
    return json_response({"files": answers})


def is_large(file: dict[str, Any]) -> bool:
    named = any(fnmatch(file["path"], pattern) for pattern in LARGE_FILES)
    return named or file["size"] > LARGEST_REGULAR_FILE or b"\0" in base64.b64decode(file["sample"])


@endpoint("POST", rf"{WEB}\.git/info/lfs/objects/batch")
def start_large_uploads(call: Call) -> Response:
    """Where to send the large objects that are not there yet."""
    body, objects = call.request.json(), []
    repository = call.writable(as_pull_request="ref" not in body)
    for wanted in body["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if not call.hub.store.is_intact(wanted["oid"]):
            answer["actions"] = {
                "upload": {"href": f"{call.hub.endpoint}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{call.hub.endpoint}/{repository.repo_id}.git/info/lfs/objects/verify"},
            }
        objects.append(answer)
    return json_response({"transfer": "basic", "objects": objects})


@endpoint("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})")
def put_object(call: Call) -> Response:
    """Keep what came: whether it is what it should be, `verify_object` says."""
    call.hub.store.objects[call.names["sha256"]] = call.request.body
    return Response(200, b"", {"ETag": f'"{call.names["sha256"]}"'})


@endpoint("POST", rf"{WEB}\.git/info/lfs/objects/verify")
def verify_object(call: Call) -> Response:
    call.writable(as_pull_request=True)
    sha256 = call.request.json()["oid"]
    if not call.hub.store.is_intact(sha256):
        raise Refusal(422, f"Uploaded object {sha256} does not have the announced size and checksum")
    return json_response({})


@endpoint("POST", rf"{API}/commit/{REVISION}")
def create_commit(call: Call) -> Response:
    """All operations in one step: nothing changes before each of them has been found good."""
    as_pull_request = call.request.flag("create_pr")
    repository = call.writable(as_pull_request)
    operations = [json.loads(line) for line in call.request.body.split(b"\n") if line.strip()]
    header = next(operation["value"] for operation in operations if operation["key"] == "header")
    ref = repository.ref(call.names["revision"])
    parent = repository.resolve(ref)
    if header.get("parentCommit") not in (None, parent.oid):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for operation in operations:
        _apply(call, files, operation["key"], operation["value"])
    answer: dict[str, Any] = {}
    if as_pull_request:
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
        ref = f"refs/pr/{number}"
        answer["pullRequestUrl"] = f"{call.hub.endpoint}/{repository.repo_id}/discussions/{number}"
    commit = repository.land(ref, parent, files, header["summary"])
    url = f"{call.hub.endpoint}/{repository.repo_id}/commit/{commit.oid}"
    return json_response(answer | {"commitOid": commit.oid, "commitUrl": url})


def _apply(call: Call, files: dict[str, StoredFile], key: str, value: dict[str, Any]) -> None:
    """Carry out one operation of a commit on a copy of the parent's files."""
    if key == "file":
        files[value["path"]] = StoredFile.regular(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if not call.hub.store.is_intact(value["oid"]):
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
        files[value["path"]] = StoredFile.large(value["oid"], len(call.hub.store.objects[value["oid"]]))
    elif key == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
    elif key != "header":
        raise Refusal(400, f"Unknown operation: {key}")
