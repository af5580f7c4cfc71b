"""What goes wrong while pushing: one clear message each, and the repository stays as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
from huggingface_hub import HfApi

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.hub import commit

from .compact import REPO, compact_model, push
from .faults import Fault
from .server import HubServer

pytestmark = pytest.mark.usefixtures("api", "waits")

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
    assert f"Nothing was committed: {REPO} is as it was." in message
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
    assert f"Nothing was committed: {REPO} is as it was." in message
    assert "files that have arrived are not sent twice" in message
    assert_nothing_lost(hub, before)


def test_a_short_break_is_not_noticed(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="cut", method="PUT", path=r"^/lfs/", times=2))
    assert push().commit == hub.refs(REPO)["refs/heads/main"]


@pytest.mark.parametrize("create_pr", [False, True], ids=["main", "pull request"])
def test_a_commit_whose_answer_was_lost_counts(
    hub: HubServer, before: dict[str, str], create_pr: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub.inject(Fault(kind="lost_answer", method="POST", path=r"/commit/"))
    pushed = push(create_pr=create_pr)
    changed = {name: commit for name, commit in hub.refs(REPO).items() if before.get(name) != commit}
    assert changed == {"refs/pr/1" if create_pr else "refs/heads/main": pushed.commit}
    assert pushed.pr_url == (f"{hub.endpoint}/{REPO}/discussions/1" if create_pr else None)
    assert "answer was lost, but commit" in caplog.text


def test_a_foreign_commit_is_not_taken_for_ours(hub: HubServer, before: dict[str, str]) -> None:
    hub.inject(Fault(kind="cut", method="POST", path=r"/commit/"))
    seen = HfApi.create_commit

    def overtaken(self: HfApi, *args: Any, **options: Any) -> Any:
        hub.seed(REPO, {"theirs.txt": b"theirs"})
        return seen(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "create_commit", overtaken)
        assert "Nothing was committed" in refused()
    assert hub.titles(REPO) == ["Seed", "Seed", "initial commit"]


def test_a_commit_in_between_is_not_overwritten(hub: HubServer, before: dict[str, str]) -> None:
    seen = HfApi.create_commit

    def overtaken(self: HfApi, *args: Any, **options: Any) -> Any:
        hub.seed(REPO, {"theirs.txt": b"theirs"})
        return seen(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "create_commit", overtaken)
        assert re.search(MESSAGES[412], refused())
    assert hub.files(REPO)["theirs.txt"] == b"theirs"
    assert hub.files(REPO)["model.safetensors"] == OLD["model.safetensors"]


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


def test_a_slow_answer_is_waited_for_and_spoken_of(
    hub: HubServer, before: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "_SECONDS_BEFORE_A_WORD", 0.2)
    hub.inject(Fault(kind="slow", delay=0.5, method="POST", path=r"/commit/"))
    assert push().commit == hub.refs(REPO)["refs/heads/main"]
    assert "Still waiting for the Hub to take or answer what was sent to tester/compact" in caplog.text


def test_a_client_that_waits_no_longer(hub: HubServer, before: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = HfApi.repo_info
    monkeypatch.setattr(HfApi, "repo_info", lambda self, repo_id: seen(self, repo_id, timeout=0.1))
    hub.inject(Fault(kind="slow", delay=0.4, method="GET", path=f"^/api/models/{REPO}$", times=1))
    assert "took too long to answer while looking for the repository. Nothing was committed." in refused()
    monkeypatch.setattr(HfApi, "repo_info", seen)
    assert_nothing_lost(hub, before)


def test_no_network(hub: HubServer, before: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    hub.stop()
    message = refused()
    assert f"No network, or no Hub at {hub.endpoint}: the connection failed while looking" in message
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


def test_a_taken_name(hub: HubServer) -> None:
    hub.inject(Fault(kind="status", status=409, path="/repos/create", times=None))
    message = refused()
    assert message.startswith(f"The name {REPO} is taken: the Hub says that there is one of this name already (409).")
    assert "Choose another name" in message
    assert ("model", REPO) not in hub.store.repositories


def test_a_name_that_is_somebody_elses(hub: HubServer) -> None:
    hub.seed("other/compact", OLD)
    before = hub.refs("other/compact")
    with pytest.raises(hce.HubError) as refusal:
        hce.push_to_hub(compact_model(), "other/compact")
    assert "The name other/compact is taken: the repository belongs to other" in str(refusal.value)
    assert "`create_pr=True`" in str(refusal.value)
    assert refusal.value.status == 403
    assert hub.refs("other/compact") == before
    with pytest.raises(hce.HubError, match=r"tester may not create repositories under other \(403\).*tester/new"):
        hce.push_to_hub(compact_model(), "other/new")


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
    assert refused().startswith("You are not logged in to the Hub (401). Nothing was committed. To log in, make one")


@pytest.mark.parametrize("name", ["a/b/c", "two words", "-dash/x"])
def test_an_impossible_name(hub: HubServer, name: str) -> None:
    with pytest.raises(hce.HubError, match="cannot be the name of a repository"):
        hce.push_to_hub(compact_model(), name)
    assert [call for call in hub.requests if call.method != "GET"] == []


def test_a_new_repository_is_left_empty_and_said_so(hub: HubServer) -> None:
    hub.inject(Fault(kind="status", status=500, method="POST", path=r"/commit/"))
    assert f"Nothing was committed: {REPO} is new and empty." in refused()
    assert hub.titles(REPO) == ["initial commit"]
    push()
    assert hub.titles(REPO) == ["Upload CompactBertForMaskedLM", "initial commit"]


def test_a_branch_that_was_made_goes_again(hub: HubServer, before: dict[str, str]) -> None:
    fault = hub.inject(Fault(kind="status", status=500, method="POST", path=r"/commit/", times=None))
    assert "Nothing was committed: tester/compact is as it was." in refused(revision="trial")
    assert hub.refs(REPO) == before
    hub.inject(Fault(kind="status", status=403, method="DELETE", path="/branch/"))
    assert "but the new branch 'trial' is there" in refused(revision="trial")
    assert fault.fired == 2
    assert_nothing_lost(hub, hub.refs(REPO))
    with pytest.raises(hce.HubError, match=r"has no revision 'refs/pr/9' \(404\)"):
        push(revision="refs/pr/9")


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
