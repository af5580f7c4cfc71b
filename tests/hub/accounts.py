"""Who may do what: tokens, and the refusals huggingface.co gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .store import Repository
from .wire import HubError


@dataclass(frozen=True)
class Account:
    """What a token stands for."""

    name: str
    role: Literal["read", "write"] = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


def account_of(token: str | None, tokens: dict[str, Account]) -> Account | None:
    """The account behind a token; None without a token."""
    if token is None:
        return None
    if token not in tokens:
        raise HubError(401, "Invalid credentials in Authorization header")
    return tokens[token]


def not_found(account: Account | None) -> HubError:
    """The answer for a repository that is not there, or that this account may not see.

    Without a token huggingface.co answers 401 and no code: the client takes that for a missing repository by
    the https address alone, so over plain http it needs the code.
    """
    if account is None:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def require_account(account: Account | None) -> Account:
    if account is None:
        raise HubError(401, "Invalid username or password.")
    return account


def require_namespace(account: Account | None, namespace: str, kind: str) -> Account:
    """May this account create, move or delete a repository there?"""
    account = require_account(account)
    if account.role != "write" or not account.owns(namespace):
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    return account


def require_write(account: Account | None, repository: Repository, as_pull_request: bool = False) -> Account:
    """May this account change the repository? A pull request is open to every token that may write at all."""
    account = require_account(account)
    if account.role != "write":
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
    if not account.owns(repository.namespace) and not as_pull_request:
        raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    return account
