"""The client in a fresh process, set up by its environment alone, and transformers on top of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .client import client_environment, run_client
from .faults import Fault
from .server import HubServer

REPO = f"{HubServer.user}/model"

ROUND_TRIP = f"""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, upload_folder, whoami

    assert whoami()["name"] == "{HubServer.user}"
    HfApi().create_repo("{REPO}")
    commit = upload_folder(repo_id="{REPO}", folder_path="checkpoint")
    print(snapshot_download("{REPO}"))
"""

TINY_BERT = """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )
    model = BertForSequenceClassification(config)
"""

PLAIN_PUSH_AND_TRAINER = f"""
    {TINY_BERT}
    from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

    model.push_to_hub("{REPO}", commit_message="Push the model", private=True)
    model = AutoModelForSequenceClassification.from_pretrained("{REPO}")
    rows = [dict(input_ids=[1, 2, 3], attention_mask=[1, 1, 1], labels=i % 2) for i in range(4)]
    arguments = TrainingArguments(
        "out", push_to_hub=True, hub_model_id="tester/tuned", hub_strategy="every_save", hub_always_push=True,
        max_steps=2, save_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.push_to_hub(commit_message="The end")
    tuned = AutoModelForSequenceClassification.from_pretrained("tester/tuned", revision="main")
    for (name, a), b in zip(trainer.model.state_dict().items(), tuned.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(5000))
    return folder.parent


def test_the_environment_is_enough(hub: HubServer, home: Path, tmp_path: Path) -> None:
    # The client is told to wait for half a minute; its waits are cut short in this process.
    fault = hub.inject(Fault(kind="status", status=429, retry_after=30, method="PUT"))
    start = time.perf_counter()
    snapshot = Path(run_client(ROUND_TRIP, client_environment(hub, home)).strip())
    assert fault.fired == 1
    assert time.perf_counter() - start < 30
    assert (snapshot / "model.safetensors").read_bytes() == bytes(5000)
    assert hub.titles(REPO)[1:] == ["initial commit"]
    hub.stop()
    offline = f"""
        from huggingface_hub import snapshot_download

        assert snapshot_download("{REPO}") == "{snapshot}"
    """
    run_client(offline, client_environment(hub, home, token=None, offline=True))


def test_a_process_without_token_and_without_a_package(hub: HubServer, tmp_path: Path) -> None:
    code = """
        import importlib.util
        from huggingface_hub import get_token

        assert get_token() is None
        try:
            import safetensors.torch
        except ModuleNotFoundError as error:
            print(error)
    """
    environment = client_environment(hub, tmp_path / "home", token=None, hidden_packages=["safetensors"])
    assert run_client(code, environment) == "No module named 'safetensors'\n"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_client("1 / 0", environment)


def test_transformers_and_trainer(hub: HubServer, tmp_path: Path) -> None:
    run_client(PLAIN_PUSH_AND_TRAINER, client_environment(hub, tmp_path / "home"))
    assert hub.titles(REPO) == ["Push the model", "initial commit"]
    assert hub.repository(REPO).private
    assert {"config.json", "model.safetensors"} <= hub.files(REPO).keys()
    titles = hub.titles("tester/tuned")
    assert titles[-1] == "initial commit"
    assert any(title.startswith("Training in progress, step") for title in titles)
    assert "README.md" in hub.files("tester/tuned")
    assert [call for call in hub.requests if call.status is None or call.status >= 500] == []
