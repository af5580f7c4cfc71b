"""One clear message for each way in which talking to the Hub can fail."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from ..modeling.errors import CompactEmbeddingsError

# The HTTP library below huggingface_hub is not the same one in all its releases.
_http = importlib.import_module(HTTPError.__module__.partition(".")[0])
ConnectError: type[Exception] = _http.ConnectError
TimeoutException: type[Exception] = _http.TimeoutException
TransportError: type[Exception] = _http.TransportError

# What the client raises of itself. It wraps what fails in an upload into a RuntimeError.
CLIENT_ERRORS: tuple[type[Exception], ...] = (HTTPError, OSError, ValueError, RuntimeError)

_NEW_TOKEN = "make one with write access at {endpoint}/settings/tokens and log in with `hf auth login`, or pass `token`"


class HubError(CompactEmbeddingsError):
    """Talking to the Hub failed. The message says what happened, what it left behind, and what to do next.

    Attributes:
        status: the HTTP status that the Hub answered with, if it answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the message and the status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Failure:
    """What failed, and where.

    Attributes:
        error: what the client raised.
        step: what was being done, as in "while {step}".
        repo_id: the repository.
        api: the client.
        revision: the branch or pull request that was written to, if any was named.
    """

    error: Exception
    step: str
    repo_id: str
    api: HfApi
    revision: str | None = None

    @property
    def cause(self) -> BaseException:
        """The first error of the chain that says something: uploads wrap it."""
        wanted = (HfHubHTTPError, TransportError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled)
        return next((error for error in chain(self.error) if isinstance(error, wanted)), self.error)

    @property
    def status(self) -> int | None:
        """The HTTP status, if there was an answer."""
        return self.cause.response.status_code if isinstance(self.cause, HfHubHTTPError) else None

    @property
    def is_undecided(self) -> bool:
        """Whether a commit may have been made all the same: it was sent, and there was no answer or a 5xx."""
        cause = self.cause
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code >= 500 and "/commit/" in str(cause.response.request.url)
        if isinstance(cause, ConnectError) or not isinstance(cause, TransportError):
            return False
        # The client has no other way to tell which of its requests broke.
        request = getattr(cause, "_request", None)
        return request is None or "/commit/" in str(request.url)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def hub_error(failure: Failure, left: str) -> HubError:
    """Return the error to raise for a failure.

    Args:
        failure: what failed, and where.
        left: a sentence on what the failure left behind.
    """
    happened, advice = _explained(failure)
    return HubError(f"{happened} {left} {advice}", failure.status)


def _explained(failure: Failure) -> tuple[str, str]:
    """Return what happened, and what to do next."""
    cause, endpoint, step = failure.cause, failure.api.endpoint, failure.step
    if isinstance(cause, HfHubHTTPError):
        return _answered(failure, cause)
    if isinstance(cause, OfflineModeIsEnabled):
        return f"The client is set to work offline (while {step}).", "Unset HF_HUB_OFFLINE and push again."
    if isinstance(cause, LocalTokenNotFoundError):
        return "You are not logged in to the Hub.", f"To log in, {_NEW_TOKEN.format(endpoint=endpoint)}."
    if isinstance(cause, TimeoutException):
        return f"The Hub at {endpoint} took too long to answer while {step}.", "Push again later."
    if isinstance(cause, ConnectError):
        return (
            f"No network, or no Hub at {endpoint}: the connection failed while {step}.",
            "Check the network and proxy settings, and push again.",
        )
    if isinstance(cause, TransportError):
        return (
            f"The connection to {endpoint} broke while {step}.",
            "Push again: files that have arrived are not sent twice.",
        )
    if isinstance(cause, HFValidationError):
        return f"{failure.repo_id!r} cannot be the name of a repository: {_one_line(cause)}", "Choose another name."
    return f"The push failed while {step}: {_one_line(failure.error)}", "Mend this and push again."


def _answered(failure: Failure, cause: HfHubHTTPError) -> tuple[str, str]:
    status, step, repo_id, said = cause.response.status_code, failure.step, failure.repo_id, _server_message(cause)
    if status == 401:
        return _unknown_token(failure)
    if status == 403:
        return _forbidden(failure, said)
    if status == 404 and isinstance(cause, RevisionNotFoundError):
        return f"{repo_id} has no revision {failure.revision!r} (404).", "Check `revision`."
    if status == 404:
        return (
            f"The Hub finds no repository {repo_id} that this token may see (404, while {step}).",
            "Check the name; it may have been deleted, renamed or made private.",
        )
    if status == 409 and step == CREATING:
        return _taken(repo_id, "the Hub says that there is one of this name already (409)")
    if status == 409:
        return f"Another change to {repo_id} was under way at the same moment (409, while {step}).", "Push again."
    if status == 412:
        return (
            f"Somebody else has committed to {repo_id} in the meantime (412).",
            "Look at the new commit, and push again if yours shall come on top of it.",
        )
    if status == 422 or "checksum" in said.lower():
        return (
            f"A file arrived at the Hub damaged: its checksum is wrong ({status}, while {step}).",
            "Push again; if it happens again, the file changes on its way (a proxy) or on the disk.",
        )
    if status == 429:
        return f"The Hub asks for fewer requests (429, while {step}).", f"Wait {_wait(cause)} and push again."
    if status >= 500:
        return f"The Hub has a problem of its own ({status}, while {step}).", "Push again in a few minutes."
    return f"The Hub refused ({status}, while {step}): {said}", "Mend this and push again."


CREATING = "creating the repository"


def _unknown_token(failure: Failure) -> tuple[str, str]:
    advice = _NEW_TOKEN.format(endpoint=failure.api.endpoint)
    if failure.api.token is False or not (failure.api.token or get_token()):
        return "You are not logged in to the Hub (401).", f"To log in, {advice}."
    return (
        f"The Hub does not know your token, or it has expired (401, while {failure.step}).",
        f"For a new one, {advice}.",
    )


def _forbidden(failure: Failure, said: str) -> tuple[str, str]:
    """Tell the three reasons apart: a token that may not write, somebody else's repository, anything else."""
    api, repo_id = failure.api, failure.repo_id
    account = _account(api)
    if account is not None:
        user, names, role = account
        if role == "read":
            return (
                f"The token of {user} has no write scope: it may read, but not write (403).",
                f"For one that may write, {_NEW_TOKEN.format(endpoint=api.endpoint)}.",
            )
        namespace = repo_id.partition("/")[0] if "/" in repo_id else user
        if namespace not in names:
            if _exists(api, repo_id):
                return _taken(repo_id, f"the repository belongs to {namespace}, and {user} may not write there (403)")
            return (
                f"{user} may not create repositories under {namespace} (403).",
                f"Push to {user}/{repo_id.rpartition('/')[2]}, or ask for membership in {namespace}.",
            )
    return (
        f"The token may not write to {repo_id} (403, while {failure.step}): {said}",
        f"Check its scopes at {api.endpoint}/settings/tokens: it needs write access to this repository.",
    )


def _taken(repo_id: str, reason: str) -> tuple[str, str]:
    return (
        f"The name {repo_id} is taken: {reason}.",
        "Choose another name, or propose your files to its owner with `create_pr=True` (`--create-pr`).",
    )


def _account(api: HfApi) -> tuple[str, set[str], str | None] | None:
    """Return who the token belongs to, where it may write, and its role; None if the Hub does not say."""
    try:
        answer = api.whoami()
    except CLIENT_ERRORS:
        return None
    names = {answer["name"], *(organization["name"] for organization in answer.get("orgs", ()))}
    return answer["name"], names, answer.get("auth", {}).get("accessToken", {}).get("role")


def _exists(api: HfApi, repo_id: str) -> bool:
    try:
        return api.repo_exists(repo_id)
    except CLIENT_ERRORS:
        return False


def _wait(cause: HfHubHTTPError) -> str:
    headers = cause.response.headers
    reset = re.search(r"\bt\s*=\s*(\d+)", headers.get("RateLimit", ""))
    seconds = headers.get("Retry-After") or (reset[1] if reset is not None else None)
    return "a few minutes" if seconds is None else f"{seconds} seconds"


def _server_message(cause: HfHubHTTPError) -> str:
    return " ".join((cause.server_message or _one_line(cause)).split())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
