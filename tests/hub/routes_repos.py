"""Endpoints about the account, and those that make and arrange repositories."""

from __future__ import annotations

from typing import Any

from .accounts import require_account, require_namespace, require_write
from .cards import check_card
from .routing import API, HUB, REVISION, Call
from .store import Discussion, Repository
from .wire import HubError, Response, json_response

DISCUSSION = rf"{API}/discussions/(?P<number>\d+)"


@HUB.add("GET", r"/api/whoami-v2")
def whoami(call: Call) -> Response:
    account = require_account(call.account)
    return json_response(
        {
            "type": "user",
            "id": account.name,
            "name": account.name,
            "fullname": account.name,
            "isPro": False,
            "orgs": [{"type": "org", "name": name, "fullname": name} for name in account.organizations],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "tests", "role": account.role},
            },
        }
    )


@HUB.add("GET", r"/api/agent-harnesses")
def list_harnesses(call: Call) -> Response:
    """The `hf` command asks for this list at its start."""
    return json_response({"standardEnvVars": [], "harnesses": {}})


@HUB.add("POST", r"/api/validate-yaml")
def validate_card(call: Call) -> Response:
    errors, warnings = check_card(call.request.json()["content"])
    answer = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return json_response(answer, 400 if errors else 200)


@HUB.add("POST", r"/api/repos/create")
def create_repository(call: Call) -> Response:
    body = call.request.json()
    kind, repo_id, namespace = _named_repository(call, body)
    account = require_namespace(call.account, namespace, kind)
    url = call.web_url(repo_id, kind=kind)
    if (kind, repo_id) in call.hub.store.repositories:
        return json_response({"error": f"You already created this {kind} repo: {repo_id}", "url": url}, 409)
    call.hub.store.create(kind, repo_id, body.get("visibility") == "private", account.name)
    return json_response({"url": url, "name": repo_id, "id": repo_id})


@HUB.add("DELETE", r"/api/repos/delete")
def delete_repository(call: Call) -> Response:
    kind, repo_id, namespace = _named_repository(call, call.request.json())
    require_namespace(call.account, namespace, kind)
    if call.hub.store.repositories.pop((kind, repo_id), None) is None:
        raise HubError(404, "Repository not found", "RepoNotFound")
    return json_response({})


def _named_repository(call: Call, body: dict[str, Any]) -> tuple[str, str, str]:
    namespace = body.get("organization") or require_account(call.account).name
    return body.get("type") or "model", f"{namespace}/{body['name']}", namespace


@HUB.add("PUT", rf"{API}/settings")
def change_settings(call: Call) -> Response:
    repository = call.repository()
    require_write(call.account, repository)
    repository.private = call.request.json().get("visibility", "public") == "private"
    return json_response({"private": repository.private})


@HUB.add("POST", rf"{API}/branch/(?P<name>[^/]+)")
def create_branch(call: Call) -> Response:
    repository = call.repository()
    require_write(call.account, repository)
    start = repository.resolve(call.request.json().get("startingPoint") or "main")
    return _create_ref(repository, f"refs/heads/{call.names['name']}", start.oid)


@HUB.add("DELETE", rf"{API}/branch/(?P<name>[^/]+)")
def delete_branch(call: Call) -> Response:
    if call.names["name"] == "main":
        raise HubError(403, "Cannot delete the default branch")
    return _delete_ref(call, f"refs/heads/{call.names['name']}")


@HUB.add("POST", rf"{API}/tag/{REVISION}")
def create_tag(call: Call) -> Response:
    repository = call.repository()
    require_write(call.account, repository)
    return _create_ref(repository, f"refs/tags/{call.request.json()['tag']}", call.commit().oid)


@HUB.add("DELETE", rf"{API}/tag/(?P<name>[^/]+)")
def delete_tag(call: Call) -> Response:
    return _delete_ref(call, f"refs/tags/{call.names['name']}")


def _create_ref(repository: Repository, ref: str, oid: str) -> Response:
    if ref in repository.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repository.refs[ref] = oid
    return json_response({})


def _delete_ref(call: Call, ref: str) -> Response:
    repository = call.repository()
    require_write(call.account, repository)
    if repository.refs.pop(ref, None) is None:
        raise HubError(404, f"Reference not found: {ref}", "RevisionNotFound")
    return json_response({})


@HUB.add("GET", rf"{API}/discussions")
def list_discussions(call: Call) -> Response:
    discussions = [_summary(call, discussion) for discussion in reversed(call.repository().discussions)]
    if call.request.query.get("p", ["0"]) != ["0"]:
        discussions = []
    return json_response({"discussions": discussions, "count": len(discussions), "start": 0})


@HUB.add("POST", rf"{API}/discussions")
def create_discussion(call: Call) -> Response:
    body, repository = call.request.json(), call.repository()
    author = require_write(call.account, repository, as_pull_request=True).name
    base = "main" if body.get("pullRequest") else None
    discussion = repository.open_discussion(body["title"], body.get("description", ""), author, base)
    if base is not None:
        discussion.status = "draft"
        repository.refs[f"refs/pr/{discussion.number}"] = repository.resolve(base).oid
    return json_response({"num": discussion.number, "pullRequest": base is not None})


@HUB.add("GET", DISCUSSION)
def get_discussion(call: Call) -> Response:
    repository = call.repository()
    discussion = repository.discussion(int(call.names["number"]))
    comment = {
        "id": f"{discussion.number:024x}",
        "type": "comment",
        "createdAt": discussion.created_at,
        "author": {"name": discussion.author},
        "data": {"edited": False, "hidden": False, "latest": {"raw": discussion.description}},
    }
    answer = {**_summary(call, discussion), "events": [comment]}
    if discussion.base is not None:
        answer["changes"] = {"base": discussion.base, "mergeCommitId": discussion.merge_commit}
        answer["filesWithConflicts"] = []
    return json_response(answer)


@HUB.add("POST", rf"{DISCUSSION}/merge")
def merge_pull_request(call: Call) -> Response:
    repository = call.repository()
    account = require_write(call.account, repository)
    repository.merge(int(call.names["number"]), account.name)
    return json_response({})


@HUB.add("POST", rf"{DISCUSSION}/status")
def change_status(call: Call) -> Response:
    repository = call.repository()
    require_write(call.account, repository)
    discussion = repository.discussion(int(call.names["number"]))
    discussion.status = call.request.json()["status"]
    event = {
        "id": f"{discussion.number:024x}",
        "type": "status-change",
        "createdAt": discussion.created_at,
        "data": {"status": discussion.status},
    }
    return json_response({"newStatus": event})


def _summary(call: Call, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.created_at,
        "status": discussion.status,
        "repo": {"name": call.names["repo"], "type": call.kind},
        "isPullRequest": discussion.base is not None,
    }
