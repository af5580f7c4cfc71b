"""The plain client against the test Hub: repositories, files, revisions and rights."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    get_session,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from .server import HubServer

Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
REPO = f"{HubServer.user}/model"
WEIGHTS = bytes(range(256)) * 8192  # 2 MiB: more than a socket takes at once
FILES = {"README.md": b"---\nlicense: mit\n---\n# Card\n", "config.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder with small and large files and a subfolder."""
    target = tmp_path / "checkpoint"
    (target / "1_Pooling").mkdir(parents=True)
    (target / "1_Pooling" / "config.json").write_bytes(b'{"a": 1}')
    for name, content in FILES.items():
        (target / name).write_bytes(content)
    return target


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_whoami_names_the_account_and_the_role(hub: HubServer, api: HfApi) -> None:
    assert api.whoami()["name"] == hub.user
    assert api.whoami(token=hub.read_token)["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as refusal:
        api.whoami(token="hf_unknown")
    assert status_of(refusal) == 401


def test_create_repo_once(hub: HubServer, api: HfApi) -> None:
    url = api.create_repo("model")
    assert (url.repo_id, str(url)) == (REPO, f"{hub.endpoint}/{REPO}")
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as refusal:
        api.create_repo(REPO)
    assert status_of(refusal) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert hub.titles(REPO) == ["initial commit"]
    assert [model.id for model in api.list_models(author=hub.user)] == [REPO]
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_upload_folder_is_one_commit(hub: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo(REPO)
    commit = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="Upload")
    assert hub.titles(REPO) == ["Upload", "initial commit"]
    assert hub.refs(REPO) == {"refs/heads/main": commit.oid}
    expected = {**FILES, "1_Pooling/config.json": b'{"a": 1}'}
    got = hub.files(REPO)
    assert {name: got[name] for name in expected} == expected
    assert hub.repository(REPO).resolve("main").files["model.safetensors"].sha256 is not None
    assert hub.repository(REPO).resolve("main").files["config.json"].sha256 is None
    # The large file went to storage, without the token; nothing else did.
    assert [(call.method, call.authorized) for call in hub.requests if call.to_storage] == [("PUT", False)]
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.titles(REPO) == ["Upload", "initial commit"], "nothing had changed"


def test_upload_file_and_delete_and_copy(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"one", path_in_repo="a/one.txt", repo_id=REPO)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id=REPO)
    operations: list[Operation] = [
        CommitOperationCopy("w.bin", "copy.bin"),
        CommitOperationAdd("two.txt", b"two"),
        CommitOperationDelete("a/one.txt"),
    ]
    api.create_commit(REPO, operations, commit_message="Three things")
    assert sorted(hub.files(REPO)) == [".gitattributes", "copy.bin", "two.txt", "w.bin"]
    assert hub.files(REPO)["copy.bin"] == WEIGHTS
    assert len(hub.calls("PUT")) == 1
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("a/one.txt", REPO)
    assert [commit.title for commit in api.list_repo_commits(REPO)] == hub.titles(REPO)


def test_a_bad_operation_leaves_everything_as_it_was(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO)
    before = hub.refs(REPO), hub.files(REPO)
    operations: list[Operation] = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("missing.txt"),
    ]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, operations, commit_message="Half")
    assert (hub.refs(REPO), hub.files(REPO)) == before


def test_pull_request(hub: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo(REPO)
    before = hub.files(REPO)
    stranger = HfApi(endpoint=hub.endpoint, token=hub.other_token)
    commit = stranger.upload_folder(repo_id=REPO, folder_path=folder, create_pr=True)
    assert commit.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    assert hub.files(REPO) == before
    stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO, create_pr=True)
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert refs.pull_requests is not None
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
    assert api.file_exists(REPO, "config.json", revision="refs/pr/1")
    assert api.get_discussion_details(REPO, 1).target_branch == "main"
    api.merge_pull_request(REPO, 2)
    api.merge_pull_request(REPO, 1)
    assert hub.files(REPO) == {**before, **FILES, "1_Pooling/config.json": b'{"a": 1}', "x.txt": b"x"}
    assert {discussion.status for discussion in api.get_repo_discussions(REPO)} == {"merged"}


def test_list_files_and_tree(hub: HubServer, api: HfApi) -> None:
    hub.seed(REPO, {"a/b/c.txt": b"c", "a/d.txt": b"d", "w.bin": WEIGHTS})
    assert api.list_repo_files(REPO) == [".gitattributes", "a/b/c.txt", "a/d.txt", "w.bin"]
    assert [entry.path for entry in api.list_repo_tree(REPO)] == [".gitattributes", "a", "w.bin"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "a", recursive=True)] == [
        "a/b",
        "a/b/c.txt",
        "a/d.txt",
    ]
    expanded = list(api.list_repo_tree(REPO, expand=True))
    titles = [entry.last_commit and entry.last_commit.title for entry in expanded]
    assert titles == ["initial commit", "Seed", "Seed"]
    assert isinstance(expanded[2], RepoFile)
    assert expanded[2].lfs is not None
    assert expanded[2].lfs.size == len(WEIGHTS)
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))
    assert [entry.path for entry in api.get_paths_info(REPO, ["w.bin", "none"])] == ["w.bin"]


def test_download_is_cached_and_works_without_the_hub(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    commit = hub.seed(REPO, FILES)
    path = api.hf_hub_download(REPO, "model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    assert commit.oid in path
    assert len(hub.calls("GET")) == 1
    api.hf_hub_download(REPO, "model.safetensors")
    assert len(hub.calls("GET")) == 1, "the second time it came from the cache"
    snapshot = Path(api.snapshot_download(REPO))
    assert {name: (snapshot / name).read_bytes() for name in FILES} == FILES
    assert not any(call.authorized for call in hub.requests if call.to_storage)
    assert api.verify_repo_checksums(REPO).mismatches == []
    hub.stop()
    assert api.hf_hub_download(REPO, "model.safetensors") == path
    assert api.snapshot_download(REPO) == str(snapshot)
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path / "other", local_files_only=True)


def test_what_exists(hub: HubServer, api: HfApi) -> None:
    commit = hub.seed(REPO, FILES)
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "none.json")
    assert not api.file_exists("tester/none", "config.json")
    assert api.revision_exists(REPO, commit.oid)
    assert api.revision_exists(REPO, commit.oid[:7])
    assert not api.revision_exists(REPO, "none")
    assert api.repo_exists(REPO)
    assert not api.repo_exists("bert-base-uncased")


def test_model_info_reads_card_and_config(hub: HubServer, api: HfApi) -> None:
    card = b"---\nlicense: mit\npipeline_tag: fill-mask\ntags: [compact]\nbase_model: org/base\n---\n"
    commit = hub.seed(REPO, {"README.md": card, "config.json": b'{"model_type": "bert"}', "w.bin": WEIGHTS})
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.sha, info.private) == (REPO, commit.oid, False)
    assert (info.library_name, info.pipeline_tag) == ("transformers", "fill-mask")
    assert info.tags == ["transformers", "compact"]
    assert info.card_data is not None
    assert info.card_data.base_model == "org/base"
    assert info.siblings is not None
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes["w.bin"] == len(WEIGHTS)
    assert api.model_info(REPO, revision="main").sha == commit.oid


def test_branches_and_tags(hub: HubServer, api: HfApi) -> None:
    first = hub.seed(REPO, FILES)
    api.create_branch(REPO, branch="work/next")
    api.create_tag(REPO, tag="v1.0", tag_message="First")
    second = api.upload_file(path_or_fileobj=b"n", path_in_repo="n.txt", repo_id=REPO, revision="work/next")
    refs = api.list_repo_refs(REPO)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    assert branches == {"main": first.oid, "work/next": second.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1.0": first.oid}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="work/next")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1.0")
    api.create_branch(REPO, branch="work/next", exist_ok=True)
    api.create_tag(REPO, tag="v1.0", exist_ok=True)
    api.delete_branch(REPO, branch="work/next")
    api.delete_tag(REPO, tag="v1.0")
    assert hub.refs(REPO) == {"refs/heads/main": first.oid}


def test_commit_on_a_parent_that_is_no_longer_the_head(hub: HubServer, api: HfApi) -> None:
    old = hub.seed(REPO, FILES)
    new = hub.seed(REPO, {"b.txt": b"b"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refusal:
        api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=REPO, parent_commit=old.oid)
    assert status_of(refusal) == 412
    assert hub.refs(REPO) == {"refs/heads/main": new.oid}
    api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=REPO, parent_commit=new.oid)
    assert "c.txt" in hub.files(REPO)


def test_what_is_not_found_has_its_own_error(hub: HubServer, api: HfApi) -> None:
    hub.seed(REPO, FILES)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("tester/none", "config.json")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "none.json")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, revision="none")
    with pytest.raises(RepositoryNotFoundError, match="create_repo"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="tester/none")


def test_a_private_repository_needs_its_owner(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id=REPO)
    assert Path(api.hf_hub_download(REPO, "w.bin", token=hub.read_token)).read_bytes() == WEIGHTS
    for token, status in ((False, 401), (hub.other_token, 404)):
        with pytest.raises(RepositoryNotFoundError) as refusal:
            api.model_info(REPO, token=token)
        assert status_of(refusal) == status
    api.update_repo_settings(REPO, visibility="public")
    assert api.model_info(REPO, token=False).id == REPO


@pytest.mark.parametrize("token", [HubServer.read_token, HubServer.other_token])
def test_a_token_without_write_scope_is_refused(hub: HubServer, api: HfApi, token: str, folder: Path) -> None:
    hub.seed(REPO, FILES)
    before = hub.refs(REPO)
    weak = HfApi(endpoint=hub.endpoint, token=token)
    for attempt in (
        lambda: weak.create_repo(f"{hub.user}/another"),
        lambda: weak.upload_folder(repo_id=REPO, folder_path=folder),
        lambda: weak.create_branch(REPO, branch="b"),
        lambda: weak.create_tag(REPO, tag="t"),
        lambda: weak.delete_repo(REPO),
        lambda: weak.auth_check(REPO, write=True),
    ):
        with pytest.raises(HfHubHTTPError, match="403 Forbidden") as refusal:
            attempt()
        assert status_of(refusal) == 403
    # With exist_ok the client is content with a repository that is there, whether it may write or not.
    assert weak.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert hub.refs(REPO) == before
    assert [call.status for call in hub.calls(path="/preupload/")] == [403], "refused before anything is sent"


def test_cards_are_checked(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO)
    data = ModelCardData(license="mit", base_model="org/base", library_name="transformers")
    ModelCard(f"---\n{data.to_yaml()}\n---\n# Card").validate()
    for bad, message in (
        ("tags: {a: 1}", '"tags" must be'),
        ("base_model: not an id", '"base_model" with value "not an id" is not valid'),
        ("model-index: [{results: []}]", r'"model-index\[0\].name" is required'),
        ("model-index: [{name: a, results: [{}]}]", r'"model-index\[0\].results\[0\].dataset" is required'),
        ("a: [b", "can not parse YAML"),
    ):
        card = f"---\n{bad}\n---\n".encode()
        with pytest.raises(ValueError, match=f"(?s)Invalid metadata in README.md.*{message}"):
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=REPO)
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# Bare", path_in_repo="README.md", repo_id=REPO)


def test_ignored_and_empty_files(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO)
    operations = [
        CommitOperationAdd(".gitignore", b"*.log\ncheckpoint-*/\n"),
        CommitOperationAdd("a.log", b"log"),
        CommitOperationAdd("checkpoint-5/w.bin", b"w"),
        CommitOperationAdd("empty.bin", b""),
    ]
    api.create_commit(REPO, operations, commit_message="Ignore")
    assert sorted(hub.files(REPO)) == [".gitattributes", ".gitignore", "empty.bin"]


def test_a_commit_cannot_name_a_large_file_that_never_came(hub: HubServer, api: HfApi) -> None:
    api.create_repo(REPO)
    before = hub.refs(REPO)
    operation = CommitOperationAdd("w.bin", WEIGHTS)
    operation._is_uploaded, operation._upload_mode, operation._should_ignore = True, "lfs", False
    operation._remote_oid = None
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        api.create_commit(REPO, [operation], commit_message="Nothing behind it")
    assert hub.refs(REPO) == before


def test_storage_wants_the_signature_and_no_token(hub: HubServer, api: HfApi) -> None:
    hub.seed(REPO, {"w.bin": WEIGHTS})
    stored = hub.repository(REPO).resolve("main").files["w.bin"]
    url = hub.storage_url("GET", str(stored.sha256))
    redirect = get_session().head(f"{hub.endpoint}/{REPO}/resolve/main/w.bin", follow_redirects=False)
    assert (redirect.status_code, redirect.headers["Location"]) == (302, url)
    assert redirect.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert get_session().get(url).content == WEIGHTS
    part = get_session().get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, WEIGHTS[10:20])
    assert get_session().get(url, headers={"Range": f"bytes={len(WEIGHTS)}-"}).status_code == 416
    assert get_session().get(url, headers={"Authorization": "Bearer x"}).status_code == 400
    assert get_session().get(url.split("?")[0]).status_code == 403
    assert get_session().put(url, content=b"x").status_code == 403
