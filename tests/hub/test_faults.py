"""What goes wrong on the way, and what the user of the plain client sees of it.

The expectations are those of the client as it is: they say what code that calls it has to catch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from .faults import Fault
from .server import HubServer

REPO = f"{HubServer.user}/model"
NEW_WEIGHTS = bytes(range(256)) * 8192  # 2 MiB: a connection can break while it is on its way
OLD = {"config.json": b'{"hidden_size": 8}', "old.safetensors": NEW_WEIGHTS[::-1]}
BACK_OFF = [1, 2, 4, 8, 8]
CONNECTION_LOST = (httpx2.NetworkError, httpx2.RemoteProtocolError)

# The requests of a push, in their order.
CARD_CHECK = ("POST", r"^/api/validate-yaml$")
PREUPLOAD = ("POST", r"/preupload/")
BATCH = ("POST", r"/objects/batch$")
UPLOAD = ("PUT", r"^/lfs/")
VERIFY = ("POST", r"/objects/verify$")
COMMIT = ("POST", r"/commit/")
RETRIED = {"preupload": PREUPLOAD, "batch": BATCH, "upload": UPLOAD, "verify": VERIFY}
NOT_RETRIED = {"card check": CARD_CHECK, "commit": COMMIT}
EVERY_STEP = RETRIED | NOT_RETRIED


@pytest.fixture
def before(hub: HubServer) -> dict[str, str]:
    """A repository with something in it; its refs before anything goes wrong."""
    hub.seed(REPO, OLD)
    return hub.refs(REPO)


def push(api: HfApi) -> str:
    operations = [
        CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n"),
        CommitOperationAdd("new.safetensors", NEW_WEIGHTS),
    ]
    return api.create_commit(REPO, operations, commit_message="Push").oid


def failure(action: Callable[[], object]) -> BaseException:
    """The error an action ends with; of an upload in a thread, its cause."""
    with pytest.raises(Exception) as caught:  # noqa: B017
        action()
    error = caught.value
    if type(error) is RuntimeError and str(error).startswith("Error while uploading"):
        assert error.__cause__ is not None
        return error.__cause__
    return error


def assert_untouched_and_pushable(hub: HubServer, api: HfApi, before: dict[str, str]) -> None:
    """Nothing has changed, and the same push goes through once the fault is gone."""
    assert hub.refs(REPO) == before
    assert hub.files(REPO).keys() == {".gitattributes", *OLD}
    hub.faults.clear()
    assert push(api) == hub.refs(REPO)["refs/heads/main"]
    assert hub.files(REPO)["new.safetensors"] == NEW_WEIGHTS
    assert hub.titles(REPO) == ["Push", "Seed", "initial commit"]


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412])
@pytest.mark.parametrize("step", EVERY_STEP)
def test_a_refusal_at_any_step_is_final(
    hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str], step: str, status: int
) -> None:
    method, path = EVERY_STEP[step]
    fault = hub.inject(Fault(kind="status", status=status, method=method, path=path, times=None))
    error = failure(lambda: push(api))
    assert isinstance(error, RepositoryNotFoundError if status == 404 else HfHubHTTPError)
    assert error.response.status_code == status
    assert (fault.fired, waits) == (1, [])
    assert_untouched_and_pushable(hub, api, before)


@pytest.mark.parametrize("step", RETRIED)
@pytest.mark.parametrize(
    ("fault", "expected_waits"),
    [
        ({"kind": "status", "status": 429, "retry_after": 7}, [8.0] * 5),
        ({"kind": "status", "status": 429}, BACK_OFF),
        ({"kind": "status", "status": 500}, BACK_OFF),
        ({"kind": "cut"}, BACK_OFF),
        ({"kind": "lost_answer"}, BACK_OFF),
    ],
    ids=["429 with Retry-After", "429", "500", "cut", "lost answer"],
)
def test_what_may_pass_is_tried_again(
    hub: HubServer,
    api: HfApi,
    waits: list[float],
    before: dict[str, str],
    step: str,
    fault: dict[str, Any],
    expected_waits: list[float],
) -> None:
    method, path = RETRIED[step]
    lasting = hub.inject(Fault(**fault, method=method, path=path, times=None))
    error = failure(lambda: push(api))
    if fault["kind"] == "status":
        assert isinstance(error, HfHubHTTPError)
        assert error.response.status_code == fault["status"]
    else:
        assert isinstance(error, CONNECTION_LOST)
    assert (lasting.fired, waits) == (6, expected_waits)
    assert_untouched_and_pushable(hub, api, before)


@pytest.mark.parametrize("step", RETRIED)
@pytest.mark.parametrize("fault", [{"kind": "status", "status": 429}, {"kind": "cut"}, {"kind": "lost_answer"}])
def test_what_passes_in_time_is_not_noticed(
    hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str], step: str, fault: dict[str, Any]
) -> None:
    method, path = RETRIED[step]
    passing = hub.inject(Fault(**fault, method=method, path=path, times=2))
    assert push(api) == hub.refs(REPO)["refs/heads/main"]
    assert (passing.fired, waits) == (2, [1, 2])
    assert hub.files(REPO)["new.safetensors"] == NEW_WEIGHTS


@pytest.mark.parametrize("step", NOT_RETRIED)
@pytest.mark.parametrize("fault", [{"kind": "status", "status": 429, "retry_after": 7}, {"kind": "status"}])
def test_a_busy_server_at_the_first_and_last_step_is_final_too(
    hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str], step: str, fault: dict[str, Any]
) -> None:
    method, path = NOT_RETRIED[step]
    struck = hub.inject(Fault(**fault, method=method, path=path))
    error = failure(lambda: push(api))
    assert isinstance(error, HfHubHTTPError)
    assert error.response.status_code == fault.get("status", 500)
    assert error.response.headers.get("Retry-After") == ("7" if "retry_after" in fault else None)
    assert (struck.fired, waits) == (1, [])
    assert_untouched_and_pushable(hub, api, before)


def test_a_cut_commit_has_not_landed(hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]) -> None:
    hub.inject(Fault(kind="cut", method="POST", path=r"/commit/"))
    assert isinstance(failure(lambda: push(api)), CONNECTION_LOST)
    assert (len(hub.calls(*COMMIT)), hub.calls(*COMMIT)[0].status, waits) == (1, None, [])
    uploads = len(hub.calls(*UPLOAD))
    assert_untouched_and_pushable(hub, api, before)
    assert len(hub.calls(*UPLOAD)) == uploads, "the second push found the weights in storage"


def test_a_commit_whose_answer_was_lost_has_landed(
    hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]
) -> None:
    hub.inject(Fault(kind="lost_answer", method="POST", path=r"/commit/"))
    assert isinstance(failure(lambda: push(api)), CONNECTION_LOST)
    assert hub.titles(REPO)[0] == "Push"
    landed = hub.refs(REPO)
    assert landed != before
    push(api)
    assert hub.refs(REPO) == landed, "the second push found nothing to do"


def test_damaged_uploads_are_refused(hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]) -> None:
    hub.inject(Fault(kind="corrupt", method="PUT"))
    error = failure(lambda: push(api))
    assert isinstance(error, HfHubHTTPError)
    assert error.response.status_code == 422
    assert "checksum" in str(error)
    assert waits == []
    assert_untouched_and_pushable(hub, api, before)


@pytest.mark.parametrize("name", OLD)
def test_the_client_takes_damaged_downloads_for_good(
    hub: HubServer, api: HfApi, before: dict[str, str], name: str
) -> None:
    hub.inject(Fault(kind="corrupt", method="GET", path=r"/config\.json$|^/lfs/"))
    path = Path(api.hf_hub_download(REPO, name))
    assert path.read_bytes() != OLD[name]
    assert len(path.read_bytes()) == len(OLD[name])
    # Only who asks is told; the damage stays in the cache until the download is forced.
    assert [mismatch["path"] for mismatch in api.verify_repo_checksums(REPO).mismatches] == [name]
    assert Path(api.hf_hub_download(REPO, name)).read_bytes() != OLD[name]
    assert Path(api.hf_hub_download(REPO, name, force_download=True)).read_bytes() == OLD[name]


@pytest.mark.parametrize("name", OLD)
def test_a_cut_download_goes_on_where_it_was(
    hub: HubServer,
    api: HfApi,
    waits: list[float],
    before: dict[str, str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The client writes whole pieces of 10 MiB, and goes on from there: smaller ones for these files.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", len(OLD[name]) // 16)
    path = r"/config\.json$|^/lfs/"
    hub.inject(Fault(kind="cut", method="GET", path=path, times=3))
    assert Path(api.hf_hub_download(REPO, name)).read_bytes() == OLD[name]
    assert waits == [1, 1, 1]
    assert {call.status for call in hub.calls("GET", path)[1:]} <= {206, 302}


def test_a_download_that_is_always_cut(hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]) -> None:
    hub.inject(Fault(kind="cut", method="GET", path=r"^/lfs/", times=None))
    error = failure(lambda: api.hf_hub_download(REPO, "old.safetensors"))
    assert isinstance(error, httpx2.RemoteProtocolError)
    assert set(waits) == {1}
    hub.faults.clear()
    assert Path(api.hf_hub_download(REPO, "old.safetensors")).read_bytes() == OLD["old.safetensors"]


def test_a_reset_download_is_not_tried_again(
    hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]
) -> None:
    hub.inject(Fault(kind="lost_answer", method="GET", path=r"^/lfs/"))
    error = failure(lambda: api.hf_hub_download(REPO, "old.safetensors"))
    assert isinstance(error, CONNECTION_LOST)
    assert waits == []


@pytest.mark.parametrize(
    ("status", "error_type", "attempts", "expected_waits"),
    [
        (401, HfHubHTTPError, 1, []),
        (403, LocalEntryNotFoundError, 1, []),
        (404, RepositoryNotFoundError, 1, []),
        (429, LocalEntryNotFoundError, 7, [4.0] * 5),
        (500, LocalEntryNotFoundError, 7, BACK_OFF),
    ],
)
def test_a_file_whose_address_is_refused(
    hub: HubServer,
    api: HfApi,
    waits: list[float],
    before: dict[str, str],
    status: int,
    error_type: type[Exception],
    attempts: int,
    expected_waits: list[float],
) -> None:
    retry_after = 3 if status == 429 else None
    fault = Fault(kind="status", status=status, method="HEAD", times=None, retry_after=retry_after)
    hub.inject(fault)
    error = failure(lambda: api.hf_hub_download(REPO, "config.json"))
    assert isinstance(error, error_type)
    assert (fault.fired, waits) == (attempts, expected_waits)
    refusal = error if isinstance(error, HfHubHTTPError) else error.__cause__
    assert isinstance(refusal, HfHubHTTPError)
    assert refusal.response.status_code == status
    hub.faults.clear()
    path = api.hf_hub_download(REPO, "config.json")
    hub.inject(fault)
    assert api.hf_hub_download(REPO, "config.json") == path, "what is in the cache needs no Hub"


@pytest.mark.parametrize(("status", "attempts", "expected_waits"), [(403, 1, []), (429, 6, [4.0] * 5), (500, 1, [])])
def test_a_file_that_is_refused(
    hub: HubServer,
    api: HfApi,
    waits: list[float],
    before: dict[str, str],
    status: int,
    attempts: int,
    expected_waits: list[float],
) -> None:
    retry_after = 3 if status == 429 else None
    fault = hub.inject(
        Fault(kind="status", status=status, method="GET", path="^/lfs/", times=None, retry_after=retry_after)
    )
    error = failure(lambda: api.hf_hub_download(REPO, "old.safetensors"))
    assert isinstance(error, HfHubHTTPError)
    assert error.response.status_code == status
    assert (fault.fired, waits) == (attempts, expected_waits)


def test_a_slow_answer(hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]) -> None:
    hub.inject(Fault(kind="slow", delay=0.3, path=r"^/api/"))
    with pytest.raises(httpx2.TimeoutException):
        api.model_info(REPO, timeout=0.05)
    fault = hub.inject(Fault(kind="slow", delay=0.3, path=r"config\.json$", times=None))
    # The first look gives up in time; as nothing is cached, a second look waits for up to a minute.
    assert Path(api.hf_hub_download(REPO, "config.json", etag_timeout=0.05)).read_bytes() == OLD["config.json"]
    assert fault.fired == 3, "two looks and the download"
    api.hf_hub_download(REPO, "config.json", etag_timeout=0.05)
    assert fault.fired == 4, "once it is cached, the first look is the last"
    assert waits == []


def test_a_push_waits_for_a_slow_answer_without_limit(
    hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]
) -> None:
    hub.inject(Fault(kind="slow", delay=0.3, method="POST", path=r"/commit/"))
    start = time.perf_counter()
    assert push(api) == hub.refs(REPO)["refs/heads/main"]
    assert time.perf_counter() - start > 0.3
    assert len(hub.calls(*COMMIT)) == 1


def test_no_network(hub: HubServer, api: HfApi, waits: list[float], before: dict[str, str]) -> None:
    path = api.hf_hub_download(REPO, "config.json")
    hub.stop()
    for action in (
        lambda: api.whoami(),
        lambda: api.create_repo("another"),
        lambda: push(api),
        lambda: api.model_info(REPO),
    ):
        assert isinstance(failure(action), httpx2.ConnectError)
    assert waits == []
    error = failure(lambda: api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=REPO))
    assert isinstance(error, httpx2.ConnectError)
    assert waits == BACK_OFF, "without a card the first request is one that is tried again"
    assert api.hf_hub_download(REPO, "config.json") == path
    assert isinstance(failure(lambda: api.hf_hub_download(REPO, "old.safetensors")), LocalEntryNotFoundError)


def test_a_taken_name(hub: HubServer, api: HfApi, waits: list[float]) -> None:
    hub.inject(Fault(kind="status", status=409, path="/repos/create", times=None))
    error = failure(lambda: api.create_repo("model"))
    assert isinstance(error, HfHubHTTPError)
    assert error.response.status_code == 409
    assert api.create_repo("model", exist_ok=True).repo_id == REPO
    assert waits == []


def test_which_requests_a_fault_strikes(hub: HubServer, api: HfApi) -> None:
    hub.seed(REPO, OLD)
    fault = hub.inject(Fault(kind="status", status=403, path=r"^/api/models/", after=1, times=2))

    def status() -> int:
        try:
            api.model_info(REPO)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    assert [status() for _ in range(5)] == [200, 403, 403, 200, 200]
    assert (fault.seen, fault.fired) == (5, 2)
    assert [call.fault for call in hub.requests] == [None, "status", "status", None, None]
    assert [call.status for call in hub.calls("GET", "tester/model$")] == [200, 403, 403, 200, 200]


@pytest.mark.parametrize("fault", [{"kind": "explode"}, {"kind": "slow"}])
def test_a_fault_that_makes_no_sense(fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="kind is 'explode'|needs a delay"):
        Fault(**fault)
