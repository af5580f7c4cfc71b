"""push_to_hub(): one commit with all that a checkpoint needs, to where it was asked to go."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoConfig

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import changed_code, write_checkpoint
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.modeling.code_files import shipped_files
from hf_compact_embeddings.modeling.transformers_internals import heads_of

from ..tools import PACKAGE, tiny_tokenizer
from .compact import REPO, compact_model, compact_report, dense_model, push
from .server import HubServer

pytestmark = pytest.mark.usefixtures("api")


def config_of(hub: HubServer, repo_id: str = REPO, revision: str = "main") -> dict:
    return json.loads(hub.files(repo_id, revision)["config.json"])


def assert_whole(files: dict[str, bytes]) -> None:
    """Weights, configuration with every head, and the code files of this release."""
    config = json.loads(files["config.json"])
    assert "model.safetensors" in files
    assert set(config["auto_map"]) == {"AutoConfig", *heads_of("bert")}
    assert {entry.partition(".")[0] for entry in config["auto_map"].values()} == {"modeling_compact"}
    code = {name: content for name, content in files.items() if name.endswith(".py")}
    assert {"modeling_compact.py", "structure.py", "structure_subspace.py"} <= code.keys()
    assert code == shipped_files(PACKAGE / "modeling" / "modeling_compact.py", {"subspace"})
    assert config["compact_code"]["files"].keys() == code.keys()


def test_a_push_is_one_commit_with_everything(hub: HubServer) -> None:
    pushed = push()
    files = hub.files(REPO)
    assert_whole(files)
    assert {"README.md", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert hub.titles(REPO) == ["Upload CompactBertForMaskedLM", "initial commit"]
    assert hub.refs(REPO) == {"refs/heads/main": pushed.commit}
    assert pushed.url == f"{hub.endpoint}/{REPO}"
    assert {file.path: file.size for file in pushed.files} == {
        name: len(content) for name, content in files.items() if name != ".gitattributes"
    }
    assert f"commit          {pushed.commit}" in str(pushed)
    # Exactly one request changed the repository after it was made.
    assert sum("/commit/" in request.path for request in hub.requests) == 1


def test_the_same_push_again_changes_nothing(hub: HubServer) -> None:
    first = push()
    second = push()
    assert second.commit == first.commit
    assert len(hub.titles(REPO)) == 2


def test_a_dry_run_sends_nothing(hub: HubServer) -> None:
    planned = push(dry_run=True)
    assert [call for call in hub.requests if call.method != "GET"] == []
    assert (planned.commit, planned.pr_url) == (None, None)
    assert "dry run" in str(planned)
    assert {file.path: file.size for file in push().files} == {file.path: file.size for file in planned.files}


def test_private_and_message(hub: HubServer) -> None:
    push(private=True, commit_message="A first try")
    assert hub.repository(REPO).private
    assert hub.titles(REPO)[0] == "A first try"


def test_what_was_to_be_private_does_not_go_to_a_public_repository(hub: HubServer) -> None:
    hub.seed(REPO, {})
    before = hub.refs(REPO)
    with pytest.raises(hce.HubError, match="is public, but `private` was asked for. Nothing was committed"):
        push(private=True)
    assert hub.refs(REPO) == before


def test_a_name_without_an_owner_is_ones_own(hub: HubServer) -> None:
    pushed = hce.push_to_hub(compact_model(), "compact")
    assert pushed.repo_id == REPO
    assert_whole(hub.files(REPO))


def test_a_branch_is_made(hub: HubServer) -> None:
    hub.seed(REPO, {"notes.txt": b"mine"})
    main = hub.refs(REPO)["refs/heads/main"]
    pushed = push(revision="trial")
    assert hub.refs(REPO) == {"refs/heads/main": main, "refs/heads/trial": pushed.commit}
    assert_whole(hub.files(REPO, "trial"))
    assert hub.files(REPO, "trial")["notes.txt"] == b"mine"
    again = push(revision="trial", commit_message="Again", base_model="org/other")
    assert hub.titles(REPO, "trial")[:2] == ["Again", "Upload CompactBertForMaskedLM"]
    assert hub.refs(REPO)["refs/heads/trial"] == again.commit


def test_a_pull_request(hub: HubServer) -> None:
    theirs = "other/model"
    hub.seed(theirs, {"README.md": b"---\nlicense: mit\n---\n"})
    before = hub.files(theirs)
    pushed = hce.push_to_hub(compact_model(), theirs, create_pr=True)
    assert hub.files(theirs) == before
    assert pushed.pr_url == f"{hub.endpoint}/{theirs}/discussions/1"
    assert_whole(hub.files(theirs, "refs/pr/1"))
    with pytest.raises(hce.HubError, match="The Hub finds no repository nobody/model"):
        hce.push_to_hub(compact_model(), "nobody/model", create_pr=True)
    with pytest.raises(hce.CompactConfigError, match="`create_pr` cannot be given beside `revision`"):
        push(create_pr=True, revision="trial")


def test_the_token_that_is_given_counts(hub: HubServer) -> None:
    pushed = hce.push_to_hub(compact_model(), "other/compact", token=hub.other_token)
    assert hub.refs("other/compact") == {"refs/heads/main": pushed.commit}


@pytest.mark.parametrize(
    "files",
    [{"config.json": b'{"model_type": "bert"}', "model.safetensors": b"1"}, {"a.gguf": b"2"}, {"config.json": b"["}],
)
def test_another_model_is_not_overwritten(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.seed(REPO, files)
    before = hub.refs(REPO)
    with pytest.raises(hce.HubError, match="is taken: the repository holds another model") as refusal:
        push()
    assert hub.refs(REPO) == before
    assert "overwrite" in str(refusal.value)
    push(overwrite=True)
    assert_whole(hub.files(REPO))


def test_shards_of_an_earlier_push_go(hub: HubServer) -> None:
    hub.seed(
        REPO,
        {
            "config.json": b'{"model_type": "compact-bert"}',
            "model.safetensors.index.json": b"{}",
            "model-00001-of-00002.safetensors": b"1",
            "notes.txt": b"mine",
        },
    )
    push()
    files = hub.files(REPO)
    assert "notes.txt" in files
    assert [name for name in files if name.startswith("model") and not name.endswith(".py")] == ["model.safetensors"]


def test_code_of_an_earlier_push_goes(hub: HubServer) -> None:
    """What the card and the hash say of the code holds for all of it; a file of somebody else's stays."""
    record = {"files": {"structure.py": "0" * 64, "structure_old.py": "1" * 64, "README.md": "2" * 64}}
    config = json.dumps({"model_type": "compact-bert", "compact_code": record}).encode()
    hub.seed(REPO, {"config.json": config, "structure_old.py": b"old", "structure.py": b"old", "handler.py": b"mine"})
    push()
    files = hub.files(REPO)
    assert "structure_old.py" not in files
    assert files.pop("handler.py") == b"mine"
    assert_whole(files)


def test_one_file_of_an_earlier_push_goes(hub: HubServer, tmp_path: Path) -> None:
    """Transformers would read it and not look at the shards."""
    hub.seed(REPO, {"config.json": b'{"model_type": "compact-bert"}', "model.safetensors": b"old"})
    model = hce.compress(dense_model(), hce.SubspaceConfig(num_subspaces=4, codebook_size=16))
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    hce.push_to_hub(tmp_path, REPO)
    weights = [name for name in hub.files(REPO) if name.endswith(".safetensors")]
    assert len(weights) > 1 and all("-of-" in name for name in weights)


def test_a_folder_from_the_command_line(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "compact"
    dense = tmp_path / "dense"
    dense_model().save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    options = ["--set", "num_subspaces=4", "--set", "codebook_size=16"]
    assert main(["compress", str(dense), "--method", "subspace", *options, "--output", str(folder), "--json"]) == 0
    (folder / "training_args.bin").write_bytes(b"pickled")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"3")
    capsys.readouterr()
    assert main(["push", str(folder), REPO, "--private", "--message", "From the shell", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    files = hub.files(REPO)
    assert_whole(files)
    assert (hub.refs(REPO), hub.titles(REPO)[0]) == ({"refs/heads/main": pushed["commit"]}, "From the shell")
    assert {"training_args.bin", "checkpoint-3/model.safetensors"}.isdisjoint(files)
    # The card that compress wrote, with the repository's name in it.
    assert f'from_pretrained("{REPO}"' in files["README.md"].decode()
    assert "Not measured" not in files["README.md"].decode()
    assert (folder / "README.md").read_text().count("<user>/<repo>") > 3
    assert main(["push", str(folder), REPO, "--dry-run"]) == 0
    assert "dry run: nothing was sent" in capsys.readouterr().out
    assert main(["push", str(dense), REPO]) == 2
    assert "which is not compact" in capsys.readouterr().err
    (folder / "tied.py").write_text("import os\n")
    assert main(["push", str(folder), REPO]) == 2
    assert (
        "code files that are not those that were saved with it: tied.py. Nothing was pushed" in capsys.readouterr().err
    )
    assert main(["push", str(tmp_path), REPO]) == 2
    assert "holds no `config.json`" in capsys.readouterr().err


class Unpickled:
    def __reduce__(self) -> tuple:
        return print, ("a pickle was loaded",)


def test_no_pickle_is_pushed(hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_checkpoint(compact_model(), tmp_path / "compact", tiny_tokenizer())
    expected = {file.name for file in folder.iterdir()} | {"README.md", "notes.txt", ".gitattributes"}
    (folder / "2_Dense").mkdir()
    (folder / "notes.txt").write_bytes(b"mine")
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.pt", "rng_state.pth", "2_Dense/state"):
        torch.save(Unpickled(), folder / name)
    for name in ("scores.pkl", "scores", "scores.json.old"):
        (folder / name).write_bytes(pickle.dumps(Unpickled()))
    hce.push_to_hub(folder, REPO)
    assert hub.files(REPO).keys() == expected
    assert "loading a pickle runs what it holds: 2_Dense/state, optimizer.pt, pytorch_model.bin" in caplog.text
    assert (folder / "training_args.bin").is_file()


def test_a_dense_model_is_refused(hub: HubServer) -> None:
    with pytest.raises(hce.CompactConfigError, match="is a BertForMaskedLM, which is not compact"):
        hce.push_to_hub(dense_model(), REPO)
    assert hub.requests == []


def test_a_report_on_another_model_is_refused(hub: HubServer) -> None:
    other = hce.compress(dense_model(), "subspace", num_subspaces=2, codebook_size=4)
    with pytest.raises(hce.CompactConfigError, match="it reports on another model"):
        hce.push_to_hub(other, REPO, report=compact_report())
    assert hub.requests == []


def test_the_plain_push_of_the_model_carries_its_code(hub: HubServer) -> None:
    compact_model().push_to_hub(REPO)
    assert_whole(hub.files(REPO))
    assert b"compact-embeddings" in hub.files(REPO)["README.md"]


def test_what_is_written_is_what_is_in_the_package(tmp_path: Path) -> None:
    folder = write_checkpoint(compact_model(), tmp_path / "compact", tiny_tokenizer())
    assert_whole({file.name: file.read_bytes() for file in folder.iterdir()})
    assert changed_code(folder) == []


def test_a_hub_id_can_be_checked_for_changed_code(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    push()
    files = hub.files(REPO)
    assert changed_code(REPO) == []
    hub.seed(REPO, {"codes.py": files["codes.py"] + b"import os\n"})
    assert changed_code(REPO) == ["codes.py"]
    assert main(["inspect", REPO]) == 0
    assert "CHANGED since saving: codes.py" in capsys.readouterr().out
    # The hash of all files catches an edited record.
    config = config_of(hub)
    config["compact_code"]["files"].pop("codes.py")
    hub.seed(REPO, {"config.json": json.dumps(config).encode()})
    assert changed_code(REPO) == ["config.json (`compact_code` contradicts itself)"]


def test_changed_code_in_a_folder_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_checkpoint(compact_model(), tmp_path / "compact")
    type(compact_model()).from_pretrained(folder)
    assert caplog.text == ""
    path = folder / "structure.py"
    path.write_bytes(path.read_bytes() + b"# changed\n")
    type(compact_model()).from_pretrained(folder)
    assert "structure.py differ from the SHA-256" in caplog.text
    assert "This code was not run" in caplog.text


def test_decompressing_drops_what_is_only_ours(tmp_path: Path) -> None:
    folder = write_checkpoint(compact_model(), tmp_path / "compact")
    loaded = type(compact_model()).from_pretrained(folder)
    assert loaded.config.compact_code is not None
    hce.decompress(loaded).save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert [name for name in config if name.startswith("compact")] == []
    assert AutoConfig.from_pretrained(tmp_path / "dense").model_type == "bert"


def test_the_client_is_the_one_of_the_environment(hub: HubServer, api: HfApi) -> None:
    assert api.model_info(push().repo_id).sha == hub.refs(REPO)["refs/heads/main"]
