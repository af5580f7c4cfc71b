"""What goes wrong while pushing: one clear message each, and the repository stays as it was."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, constants

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main

from . import routes
from .compact import BASE, BASE_CARD, REPO, compact_model, push
from .faults import Fault
from .server import HubServer

pytestmark = pytest.mark.usefixtures("api", "no_waits")

OLD = {"config.json": b'{"model_type": "compact-bert"}', "model.safetensors": bytes(5000)}
PREUPLOAD, BATCH, UPLOAD = ("POST", r"/preupload/"), ("POST", r"/objects/batch$"), ("PUT", r"^/lfs/")
VERIFY, COMMIT, CARD = ("POST", r"/objects/verify$"), ("POST", r"/commit/"), ("POST", r"/validate-yaml$")
STEPS = {"card": CARD, "preupload": PREUPLOAD, "batch": BATCH, "upload": UPLOAD, "verify": VERIFY, "commit": COMMIT}


@pytest.fixture
def before(hub: HubServer) -> dict[str, str]:
    """A repository with an earlier push in it."""
    hub.seed(REPO, OLD)
    return hub.refs(REPO)


def refused(**options: Any) -> str:
    """The message of a push that fails: one paragraph with one sentence on what is left."""
    with pytest.raises(hce.HubError) as caught:
        push(**options)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, hce.CompactEmbeddingsError)
    return message


def assert_nothing_lost(hub: HubServer, before: dict[str, str]) -> None:
    """The branches and files are as they were, and the same push goes through once the fault is gone."""
    assert hub.refs(REPO) == before
    assert {name: hub.files(REPO)[name] for name in OLD} == OLD
    hub.faults.clear()
    assert push().commit == hub.refs(REPO)["refs/heads/main"]


MESSAGES = {
    401: r"The Hub does not know your token, or it has expired \(401.*log in with `hf auth login`",
    403: r"The token may not write to tester/compact \(403.*needs write access to this repository",
    404: r"The Hub finds no repository tester/compact that this token may see \(404.*deleted, renamed or made private",
    409: r"Another change to tester/compact was under way at the same moment \(409.*Push again",
    412: r"Somebody else has committed to tester/compact in the meantime \(412\).*push again if yours shall come",
    429: r"The Hub asks for fewer requests \(429.*Wait 7 seconds and push again",
    500: r"The Hub has a problem of its own \(500.*Push again in a few minutes",
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", MESSAGES)
def test_each_refusal_has_its_message(hub: HubServer, before: dict[str, str], step: str, status: int) -> None:
    method, path = STEPS[step]
    hub.inject(Fault(kind="status", status=status, method=method, path=path, times=None, retry_after=7))
    message = refused()
    assert re.search(MESSAGES[status], message), message
    assert "Nothing was committed." in message
    assert_nothing_lost(hub, before)


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_refusal_before_anything_is_sent(hub: HubServer, before: dict[str, str], status: int) -> None:
    path = f"^/api/models/{REPO}$"
    hub.inject(Fault(kind="status", status=status, method="GET", path=path, times=None, retry_after=7))
    assert re.search(MESSAGES[status], refused())
    assert_nothing_lost(hub, before)


@pytest.mark.parametrize("step", STEPS)
def test_a_cut_connection(hub: HubServer, before: dict[str, str], step: str) -> None:
    method, path = STEPS[step]
    hub.inject(Fault(kind="cut", method=method, path=path, times=None))
    message = refused()
    assert re.search(r"The connection to http://127.0.0.1:\d+ broke while sending the files", message), message
    assert "Nothing was committed." in message
    assert "files that have arrived are not sent twice" in message
    assert_nothing_lost(hub, before)


def test_a_short_break_is_not_noticed(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="cut", method="PUT", path=r"^/lfs/", times=2))
    assert push().commit == hub.refs(REPO)["refs/heads/main"]


def test_a_commit_whose_answer_was_lost_counts(
    hub: HubServer, before: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.seed(REPO, {"model.safetensors.index.json": b"{}"})
    hub.inject(Fault(kind="lost_answer", method="POST", path=r"/commit/"))
    pushed = push()
    assert hub.refs(REPO) == {"refs/heads/main": pushed.commit}
    assert hub.titles(REPO) == ["Upload CompactBertForMaskedLM", "Seed", "Seed", "initial commit"]
    assert "model.safetensors.index.json" not in hub.files(REPO)
    assert "answer was lost, but commit" in caplog.text


def test_a_pull_request_whose_answer_was_lost_is_to_be_looked_at(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="lost_answer", method="POST", path=r"/commit/"))
    message = refused(create_pr=True)
    assert f"could not be found out: look at {hub.endpoint}/{REPO}/discussions first." in message
    assert list(hub.refs(REPO)) == ["refs/heads/main", "refs/pr/1"], "it was not sent twice"


@pytest.fixture
def overtaken(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else commits after a push has looked at the repository, and before it sends its commit."""
    seen = HfApi.create_commit

    def create_commit(self: HfApi, *args: Any, **options: Any) -> Any:
        if hub.titles(REPO).count("Seed") == 1:
            hub.seed(REPO, {"theirs.txt": b"theirs"})
        return seen(self, *args, **options)

    monkeypatch.setattr(HfApi, "create_commit", create_commit)


@pytest.mark.usefixtures("before", "overtaken")
def test_a_commit_in_between_is_not_overwritten(hub: HubServer) -> None:
    assert re.search(MESSAGES[412], refused())
    assert hub.files(REPO)["theirs.txt"] == b"theirs"
    assert hub.files(REPO)["model.safetensors"] == OLD["model.safetensors"]
    push()
    assert hub.files(REPO)["theirs.txt"] == b"theirs"


@pytest.mark.usefixtures("before", "overtaken")
def test_a_foreign_commit_is_not_taken_for_ours(hub: HubServer) -> None:
    hub.inject(Fault(kind="cut", method="POST", path=r"/commit/"))
    assert re.search(r"Somebody else has committed .* look at http.*/tester/compact first\.", refused())
    assert hub.titles(REPO) == ["Seed", "Seed", "initial commit"]


def test_what_became_of_the_commit_cannot_be_found_out(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="lost_answer", method="POST", path=r"/commit/"))
    hub.inject(Fault(kind="cut", method="GET", path=f"^/api/models/{REPO}$", after=1, times=None))
    message = refused()
    assert f"Whether the commit was made could not be found out: look at {hub.endpoint}/{REPO} first." in message
    hub.faults.clear()
    assert push().commit == hub.refs(REPO)["refs/heads/main"]
    assert hub.titles(REPO) == ["Upload CompactBertForMaskedLM", "Seed", "initial commit"]


def test_a_damaged_upload(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="corrupt", method="PUT"))
    message = refused()
    assert "A file arrived at the Hub damaged: its checksum is wrong (422" in message
    assert_nothing_lost(hub, before)


def test_a_client_that_waits_no_longer(hub: HubServer, before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = HfApi.model_info
    monkeypatch.setattr(HfApi, "model_info", functools.partialmethod(seen, timeout=0.1))
    hub.inject(Fault(kind="slow", delay=0.4, method="GET", path=f"^/api/models/{REPO}$", times=1))
    assert "took too long to answer while looking at the repository. Nothing was committed." in refused()
    monkeypatch.setattr(HfApi, "model_info", seen)
    assert_nothing_lost(hub, before)


def test_no_network(hub: HubServer, before: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    hub.stop()
    message = refused()
    assert f"No network, or no Hub at {hub.endpoint}: the connection failed while creating the repository" in message
    assert "Check the network and proxy settings" in message


def test_the_network_goes_while_sending(hub: HubServer, before: dict[str, str]) -> None:
    seen = HfApi.create_commit

    def unplugged(self: HfApi, *args: Any, **options: Any) -> Any:
        hub.stop()
        return seen(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "create_commit", unplugged)
        message = refused()
    assert "No network" in message
    assert "Nothing was committed" in message
    assert hub.refs(REPO) == before


def test_a_name_that_is_somebody_elses(hub: HubServer) -> None:
    hub.seed("other/compact", OLD)
    before = hub.refs("other/compact")
    with pytest.raises(
        hce.HubError, match=r"other/compact lies under other, and tester may not write there"
    ) as refusal:
        hce.push_to_hub(compact_model(), "other/compact")
    assert "`create_pr=True`" in str(refusal.value)
    assert refusal.value.status == 403
    assert hub.refs("other/compact") == before
    with pytest.raises(hce.HubError, match=r"tester may not write there \(403\).*Push to tester/new"):
        hce.push_to_hub(compact_model(), "other/new")
    assert "other/new" not in hub.store.repositories


QUOTA = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."


@pytest.mark.parametrize("status", [403, 413])
@pytest.mark.parametrize("step", ["preupload", "batch", "commit"])
def test_no_room_left(hub: HubServer, before: dict[str, str], step: str, status: int) -> None:
    method, path = STEPS[step]
    hub.inject(Fault(kind="status", status=status, message=QUOTA, method=method, path=path, times=None))
    message = refused()
    assert message.startswith(f"The Hub has no more room for this ({status}, while sending the files): {QUOTA}")
    assert "settings/billing" in message and "scopes" not in message
    assert_nothing_lost(hub, before)


def test_a_gated_original_stops_no_push(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    hub.seed(BASE, {"README.md": BASE_CARD.encode()})
    gate = Fault(kind="status", status=403, error_code="GatedRepo", path=f"/{BASE}/", times=None)
    hub.inject(gate)
    push(base_model=BASE)
    assert gate.fired > 0
    assert f"The card of {BASE} could not be read, so its licence" in caplog.text
    assert "license" not in hub.files(REPO)["README.md"].decode().split("---")[1]
    # The original that `compress()` noted is looked for too.
    compact = copy.deepcopy(compact_model())
    compact.config.compact_source["base_model"] = BASE
    hce.push_to_hub(compact, REPO)
    assert f"{BASE} is out of reach: if it has sentence-transformers files, they are not pushed along" in caplog.text


@pytest.mark.parametrize("is_new", [False, True], ids=["there", "new"])
def test_a_token_without_write_scope(hub: HubServer, is_new: bool) -> None:
    if not is_new:
        hub.seed(REPO, OLD)
    message = refused(token=hub.read_token)
    assert message.startswith("The token of tester has no write scope: it may read, but not write (403).")
    assert f"make one with write access at {hub.endpoint}/settings/tokens" in message
    assert [call for call in hub.requests if call.method == "PUT"] == []


def test_no_token_and_an_unknown_one(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(token="hf_unknown").startswith("The Hub does not know your token, or it has expired (401")
    monkeypatch.delenv("HF_TOKEN")
    assert refused().startswith("You are not logged in to the Hub. Nothing was committed. To log in, make one")


@pytest.mark.parametrize("name", ["a/b/c", "two words", "-dash/x"])
def test_an_impossible_name(hub: HubServer, name: str) -> None:
    with pytest.raises(hce.HubError, match="cannot be the name of a repository"):
        hce.push_to_hub(compact_model(), name)
    assert [call for call in hub.requests if call.method != "GET"] == []


def test_a_new_repository_is_left_empty(hub: HubServer) -> None:
    hub.inject(Fault(kind="status", status=500, method="POST", path=r"/commit/"))
    assert "Nothing was committed." in refused()
    assert hub.titles(REPO) == ["initial commit"]
    push()
    assert hub.titles(REPO) == ["Upload CompactBertForMaskedLM", "initial commit"]


def test_a_new_branch_stays_at_what_it_started_from(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="status", status=500, method="POST", path=r"/commit/"))
    assert "Nothing was committed." in refused(revision="trial")
    assert set(hub.refs(REPO).values()) == set(before.values())
    pushed = push(revision="trial")
    assert hub.refs(REPO) == before | {"refs/heads/trial": pushed.commit}
    with pytest.raises(hce.HubError, match=r"has no such revision \(404.*refs/pr/9"):
        push(revision="refs/pr/9")


@pytest.mark.parametrize("error", [ValueError("a wrong value"), RuntimeError("a bug"), OSError("a full disk")])
def test_an_error_of_ours_passes_through(
    hub: HubServer, before: dict[str, str], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise error

    for owner, name in ((HfApi, "create_repo"), (HfApi, "model_info"), (HfApi, "create_commit")):
        with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
            patch.setattr(owner, name, broken)
            push()
        assert caught.value is error, name
    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(ModelCard, "load", broken)
        push(base_model=BASE)
    assert caught.value is error


def test_a_failure_below_the_client_is_explained(
    hub: HubServer, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf_xet` raises plain errors of Python: here for want of a storage that it can talk to."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert re.search(r"while sending the files.*Nothing was committed\.", refused())
    assert hub.refs(REPO) == before


@pytest.mark.parametrize("has_xet", [False, True])
def test_a_push_is_one_commit_or_none(
    hub: HubServer, before: dict[str, str], has_xet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `hf_xet`, `HfApi.upload_folder` sends a folder of more than 20 files in pieces once a commit fails."""
    if has_xet:
        pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not has_xet)
    monkeypatch.setattr(routes, "is_large", lambda file: False)
    commits = hub.inject(Fault(kind="status", status=503, method="POST", path=r"/commit/", times=60))
    assert "The Hub has a problem of its own (503" in refused()
    assert (hub.refs(REPO), commits.fired) == (before, 1)
    hub.faults.clear()
    push()
    assert hub.titles(REPO) == ["Upload CompactBertForMaskedLM", "Seed", "initial commit"]


def test_the_command_line_says_it_in_one_line(
    hub: HubServer, before: dict[str, str], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    compact_model().save_pretrained(tmp_path / "compact")
    hub.inject(Fault(kind="status", status=429, method="POST", path=r"/commit/", retry_after=11))
    assert main(["push", str(tmp_path / "compact"), REPO, "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Wait 11 seconds" in printed.err
