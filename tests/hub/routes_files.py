"""Endpoints that read: repositories, trees and files."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from .accounts import require_write
from .cards import card_metadata
from .routing import API, HUB, REVISION, STORAGE, WEB, Call
from .store import Commit, Repository, StoredFile, Tree
from .wire import HubError, Response, content_response, json_response


@HUB.add("GET", r"/api/(?P<kind>models|datasets|spaces)")
def list_repositories(call: Call) -> Response:
    author = call.request.query.get("author", [None])[0]
    search = call.request.query.get("search", [""])[0]
    listed = [
        repository_info(call, repository, repository.resolve("main"))
        for repository in call.hub.store.repositories.values()
        if repository.kind == call.kind
        and not repository.private
        and author in (None, repository.namespace)
        and search.lower() in repository.repo_id.lower()
    ]
    return json_response(listed)


@HUB.add("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?")
def list_tree(call: Call) -> Response:
    repository, commit = call.repository(), call.commit()
    folder = call.names.get("path", "").strip("/")
    entries = tree_entries(commit.files, folder, call.request.flag("recursive"))
    if not entries and folder:
        raise HubError(404, f'"{folder}" does not exist on "{call.names["revision"]}"', "EntryNotFound")
    if call.request.flag("expand"):
        entries = [_expanded(repository, commit, entry) for entry in entries]
    return json_response(entries)


@HUB.add("POST", rf"{API}/paths-info/{REVISION}")
def paths_info(call: Call) -> Response:
    form = parse_qs(call.request.body.decode())
    repository, commit = call.repository(), call.commit()
    entries = [entry for entry in tree_entries(commit.files, "", True) if entry["path"] in form.get("paths", [])]
    if form.get("expand", ["false"])[0].lower() == "true":
        entries = [_expanded(repository, commit, entry) for entry in entries]
    return json_response(entries)


@HUB.add("GET", rf"{API}/commits/{REVISION}")
def list_commits(call: Call) -> Response:
    repository = call.repository()
    return json_response(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in repository.history(call.commit())
        ]
    )


@HUB.add("GET", rf"{API}/refs")
def list_refs(call: Call) -> Response:
    repository = call.repository()

    def under(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repository.refs.items()
            if ref.startswith(prefix)
        ]

    refs = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if call.request.flag("include_prs"):
        refs["pullRequests"] = under("refs/pr/")
    return json_response(refs)


@HUB.add("GET", rf"{API}/auth-check(?P<write>/write)?")
def check_access(call: Call) -> Response:
    repository = call.repository()
    if "write" in call.names:
        require_write(call.account, repository)
    return json_response({})


@HUB.add("GET", rf"{API}(?:/revision/{REVISION})?")
def get_repository(call: Call) -> Response:
    return json_response(repository_info(call, call.repository(), call.commit(), call.request.flag("blobs")))


@HUB.add("GET", rf"{WEB}/(?:resolve|raw)/{REVISION}/(?P<path>.+)")
def get_file(call: Call) -> Response:
    """A small file itself; for a large one, where the storage has it."""
    commit, path = call.commit(), call.names["path"]
    headers = {"X-Repo-Commit": commit.oid}
    stored = commit.files.get(path)
    if stored is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    if stored.sha256 is None:
        content = call.hub.store.content(stored)
        return content_response(call.request, content, {**headers, "ETag": f'"{stored.etag}"'})
    location = call.hub.storage_url("GET", stored.sha256)
    headers |= {"Location": location, "X-Linked-ETag": f'"{stored.etag}"', "X-Linked-Size": str(stored.size)}
    return Response(302, f"Found. Redirecting to {location}".encode(), headers)


@STORAGE.add("GET", r"/lfs/(?P<sha256>[0-9a-f]{64})")
def get_object(call: Call) -> Response:
    sha256 = call.names["sha256"]
    call.hub.check_signature(call.request, "GET", sha256)
    content = call.hub.store.objects.get(sha256)
    if content is None:
        raise HubError(404, "The specified key does not exist.")
    return content_response(call.request, content, {"ETag": f'"{sha256}"'})


def tree_entries(files: Tree, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders under a folder ("" for the root)."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, stored in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            parent = prefix + "/".join(parts[:depth])
            tree_id = StoredFile.regular("".join(f.blob_id for f in _below(files, parent)).encode()).blob_id
            entries.setdefault(parent, {"type": "directory", "path": parent, "oid": tree_id, "size": 0})
        if recursive or len(parts) == 1:
            entries[path] = _file_entry(path, stored)
    return list(entries.values())


def _below(files: Tree, folder: str) -> list[StoredFile]:
    return [stored for path, stored in sorted(files.items()) if path.startswith(f"{folder}/")]


def _file_entry(path: str, stored: StoredFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": stored.blob_id, "size": stored.size}
    if stored.sha256 is not None:
        entry["lfs"] = {"oid": stored.sha256, "size": stored.size, "pointerSize": stored.pointer_size}
    return entry


def _expanded(repository: Repository, commit: Commit, entry: dict[str, Any]) -> dict[str, Any]:
    change = repository.last_change(commit, entry["path"])
    return {**entry, "lastCommit": {"id": change.oid, "title": change.title, "date": change.date}}


def _read_config(content: str) -> dict[str, Any]:
    """A model's config; empty where there is none or it cannot be read."""
    try:
        config = json.loads(content)
    except json.JSONDecodeError:
        return {}
    return config if isinstance(config, dict) else {}


def repository_info(call: Call, repository: Repository, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """What the Hub knows about a repository at a commit."""

    def text(path: str) -> str:
        stored = commit.files.get(path)
        return "" if stored is None else call.hub.store.content(stored).decode(errors="replace")

    card = card_metadata(text("README.md"))
    config = _read_config(text("config.json"))
    guessed = "sentence-transformers" if "modules.json" in commit.files else "transformers" if config else None
    library = card.get("library_name", guessed)
    tags = card.get("tags", [])
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    if blobs:
        for sibling in siblings:
            stored = commit.files[sibling["rfilename"]]
            sibling |= {"size": stored.size, "blobId": stored.blob_id}
            if stored.sha256 is not None:
                sibling["lfs"] = {
                    "sha256": stored.sha256,
                    "size": stored.size,
                    "pointerSize": stored.pointer_size,
                }
    return {
        "_id": commit.oid[:24],
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.namespace,
        "sha": commit.oid,
        "createdAt": repository.created_at,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*([library] if library else []), *([tags] if isinstance(tags, str) else tags)],
        "library_name": library,
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card,
        "config": {name: config[name] for name in ("architectures", "model_type", "auto_map") if name in config},
        "siblings": siblings,
    }
