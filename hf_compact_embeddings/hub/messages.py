"""One clear message for each way in which talking to the Hub can fail."""

from __future__ import annotations

import contextlib
import importlib
import re
import traceback
from collections.abc import Iterator

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from transformers.utils import logging

from ..modeling.errors import CompactEmbeddingsError

logger = logging.get_logger(__name__)

# The HTTP library below huggingface_hub is not the same one in all its releases.
_http = importlib.import_module(HTTPError.__module__.partition(".")[0])
ConnectError: type[Exception] = _http.ConnectError
TimeoutException: type[Exception] = _http.TimeoutException
TransportError: type[Exception] = _http.TransportError

_PACKAGE = __name__.partition(".")[0]
_CLIENT_PACKAGES = ("huggingface_hub", _http.__name__)

# Each message: what happened, {left} (what that left behind), and what to do next.
_NEW_TOKEN = (
    "make one with write access at {endpoint}/settings/tokens and log in with `hf auth login`, or pass `token`."
)
_NO_TOKEN = f"You are not logged in to the Hub. {{left}} To log in, {_NEW_TOKEN}"
_UNKNOWN_TOKEN = (
    f"The Hub does not know your token, or it has expired (401, while {{step}}). {{left}} For a new one, {_NEW_TOKEN}"
)
_READ_TOKEN = (
    "The token of {user} has no write scope: it may read, but not write (403). {left} "
    f"For one that may write, {_NEW_TOKEN}"
)
_NOT_YOURS = (
    "{repo_id} lies under {owner}, and {user} may not write there (403). {left} Push to {user}/{name}, "
    "or propose your files to the owner of a repository that is there with `create_pr=True` (`--create-pr`)."
)
_FORBIDDEN = (
    "The token may not write to {repo_id} (403, while {step}): {said} {left} "
    "Check its scopes at {endpoint}/settings/tokens: it needs write access to this repository."
)
_NO_ROOM = (
    "The Hub has no more room for this ({status}, while {step}): {said} {left} "
    "Make room, or ask for more at {endpoint}/settings/billing, and push again."
)
_NO_REVISION = "{repo_id} has no such revision (404, while {step}): {said} {left} Check `revision`."
_OWN_PROBLEM = "The Hub has a problem of its own ({status}, while {step}). {left} Push again in a few minutes."
_REFUSED = "The Hub refused ({status}, while {step}): {said} {left} Mend this and push again."
_ANSWERS = {
    404: "The Hub finds no repository {repo_id} that this token may see (404, while {step}). {left} "
    "Check the name; it may have been deleted, renamed or made private.",
    409: "Another change to {repo_id} was under way at the same moment (409, while {step}). {left} Push again.",
    412: "Somebody else has committed to {repo_id} in the meantime (412). {left} "
    "Look at the new commit, and push again if yours shall come on top of it.",
    422: "A file arrived at the Hub damaged: its checksum is wrong (422, while {step}). {left} "
    "Push again; if it happens again, the file changes on its way (a proxy) or on the disk.",
    429: "The Hub asks for fewer requests (429, while {step}). {left} Wait {wait} and push again.",
}
# Where there was no answer; a connection that fails is a TransportError too.
_NO_ANSWER: dict[type[Exception], str] = {
    OfflineModeIsEnabled: "The client is set to work offline (while {step}). {left} "
    "Unset HF_HUB_OFFLINE and push again.",
    LocalTokenNotFoundError: _NO_TOKEN,
    TimeoutException: "The Hub at {endpoint} took too long to answer while {step}. {left} Push again later.",
    ConnectError: "No network, or no Hub at {endpoint}: the connection failed while {step}. {left} "
    "Check the network and proxy settings, and push again.",
    TransportError: "The connection to {endpoint} broke while {step}. {left} "
    "Push again: files that have arrived are not sent twice.",
    HFValidationError: "{repo_id!r} cannot be the name of a repository: {said} {left} Choose another name.",
}
_OTHER = "The push failed while {step}: {said} {left} Mend this and push again."


class HubError(CompactEmbeddingsError):
    """Talking to the Hub failed. The message says what happened, what it left behind, and what to do next.

    Attributes:
        status: the HTTP status that the Hub answered with, if it answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the message and the status."""
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def explained(api: HfApi, repo_id: str, step: str, left: str = "Nothing was committed.") -> Iterator[None]:
    """Raise a `HubError` for what the Hub's client raises; anything else passes through.

    Args:
        api: the client.
        repo_id: the repository that is written to.
        step: what is being done, as in "while {step}".
        left: what a failure leaves behind.
    """
    try:
        yield
    except Exception as error:
        if not raised_by_client(error):
            raise
        cause = _cause(error)
        words = {"endpoint": api.endpoint, "repo_id": repo_id, "step": step, "left": left, "said": _one_line(cause)}
        if not isinstance(cause, HfHubHTTPError):
            kinds = (text for kind, text in _NO_ANSWER.items() if isinstance(cause, kind))
            raise HubError(next(kinds, _OTHER).format(**words)) from error
        status = cause.response.status_code
        words |= {"said": " ".join((cause.server_message or str(cause)).split()), "wait": _wait(cause)}
        message = _refusal(api, repo_id, cause, words)
        raise HubError(message.format(**words, status=status), status) from error


@contextlib.contextmanager
def only_warned(consequence: str) -> Iterator[None]:
    """Warn of what the Hub's client raises, and go on: for what a push does not depend on."""
    try:
        yield
    except Exception as error:
        if not raised_by_client(error):
            raise
        logger.warning(f"{consequence}: {_one_line(error)}")


def raised_by_client(error: BaseException) -> bool:
    """Return whether the Hub's client raised an error, and not this package.

    The place decides, not the type: beside its own errors the client raises plain ones, such as a RuntimeError around
    a failed upload or the ConnectionError of `hf_xet`, and a ValueError of ours must not be taken for one of these.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in (_PACKAGE, *_CLIENT_PACKAGES):
            return package != _PACKAGE
    return False


def may_have_landed(error: Exception) -> bool:
    """Return whether a commit may have been made all the same: it was sent, and there was no answer or a 5xx."""
    cause = _cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500 and "/commit/" in str(cause.response.request.url)
    if isinstance(cause, ConnectError) or not isinstance(cause, TransportError):
        return False
    # The client has no other way to tell which of its requests broke.
    request = getattr(cause, "_request", None)
    return request is None or "/commit/" in str(request.url)


def _cause(error: Exception) -> BaseException:
    """Return the first error of the chain that says something: uploads wrap it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, (HfHubHTTPError, *_NO_ANSWER)):
        found = found.__cause__
    return found or error


def _refusal(api: HfApi, repo_id: str, cause: HfHubHTTPError, words: dict[str, str]) -> str:
    """Choose the message for an answer that is an error; who and whose are added to the words."""
    status = cause.response.status_code
    if status == 401:
        return _UNKNOWN_TOKEN if api.token is not False and (api.token or get_token()) else _NO_TOKEN
    if status in (402, 413) or (status == 403 and "storage" in words["said"].lower()):
        return _NO_ROOM
    if status == 403:
        return _forbidden(api, repo_id, words)
    if isinstance(cause, RevisionNotFoundError):
        return _NO_REVISION
    return _ANSWERS.get(status, _OWN_PROBLEM if status >= 500 else _REFUSED)


def _forbidden(api: HfApi, repo_id: str, words: dict[str, str]) -> str:
    """Tell the three reasons apart: a token that may not write, somebody else's repository, anything else."""
    try:
        account = api.whoami()
    except (HTTPError, LocalTokenNotFoundError):
        return _FORBIDDEN
    owner, _, name = repo_id.rpartition("/")
    words |= {"user": account["name"], "owner": owner, "name": name}
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return _READ_TOKEN
    own = {"", account["name"], *(organization["name"] for organization in account.get("orgs", ()))}
    return _FORBIDDEN if owner in own else _NOT_YOURS


def _wait(cause: HfHubHTTPError) -> str:
    headers = cause.response.headers
    reset = re.search(r"\bt\s*=\s*(\d+)", headers.get("RateLimit", ""))
    seconds = headers.get("Retry-After") or (reset[1] if reset is not None else None)
    return "a few minutes" if seconds is None else f"{seconds} seconds"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
