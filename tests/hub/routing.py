"""The table of endpoints, and what each handler is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from .accounts import Account, not_found
from .store import Commit, Repository
from .wire import HubError, Request, Response

if TYPE_CHECKING:
    from .server import HubServer

REPO = r"(?P<repo>(?:[^/]+/)?[^/]+?)"  # with a namespace, or as old models without
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"
KINDS = {None: "model", "models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class Call:
    """One request on its way to a handler; `names` are the decoded parts of its path."""

    hub: HubServer
    request: Request
    account: Account | None
    names: dict[str, str]

    @property
    def kind(self) -> str:
        return KINDS[self.names.get("kind")]

    def repository(self) -> Repository:
        """The repository that the path names, if this account may see it."""
        repository = self.hub.store.repositories.get((self.kind, self.names["repo"]))
        if repository is None:
            raise not_found(self.account)
        if repository.private and (self.account is None or not self.account.owns(repository.namespace)):
            raise not_found(self.account)
        return repository

    def commit(self) -> Commit:
        """The commit that the path names."""
        return self.repository().resolve(self.names.get("revision", "main"))

    def web_url(self, repo_id: str, *rest: str, kind: str | None = None) -> str:
        kind = kind or self.kind
        prefix = "" if kind == "model" else f"{kind}s/"
        return "/".join([self.hub.endpoint, f"{prefix}{repo_id}", *rest])


Handler = Callable[[Call], Response]


class RouteTable:
    """Endpoints by method and pattern of the percent-encoded path; the first that matches answers."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, pattern: str) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            self._routes.append((method, re.compile(pattern), handler))
            return handler

        return register

    def find(self, request: Request) -> tuple[Handler, dict[str, str]]:
        """The handler for a request and the decoded parts of its path; HEAD is answered as GET."""
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, handler in self._routes:
            found = pattern.fullmatch(request.path) if route_method == method else None
            if found is not None:
                return handler, {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
        raise HubError(404, f"Sorry, we can't find the page you are looking for: {request.method} {request.path}")


HUB = RouteTable()
STORAGE = RouteTable()
