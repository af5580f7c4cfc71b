"""The whole way: compress, push, load elsewhere without the package, fine-tune and push, load again."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

import hf_compact_embeddings as hce

from ..tools import tiny_texts, tiny_tokenizer
from .client import client_environment, run_client
from .compact import BASE, BASE_CARD, REPO, compact_model, dense_model, push, sentence_folder
from .faults import Fault, corrupted
from .server import HubServer

TUNED = f"{HubServer.user}/tuned"
WITHOUT_PACKAGE = ["hf_compact_embeddings"]
IDS = [[2, 10, 11, 50, 3]]

LOAD_EVERYTHING = f"""
    import json, torch, transformers
    from transformers import AutoConfig, AutoTokenizer, pipeline

    try:
        import hf_compact_embeddings
        raise SystemExit("the package can be imported here")
    except ModuleNotFoundError:
        pass

    repo, trust = "{REPO}", {{"trust_remote_code": True}}
    config = AutoConfig.from_pretrained(repo, **trust)
    heads = sorted(name for name in config.auto_map if name != "AutoConfig")
    classes = {{}}
    for head in heads:
        model = getattr(transformers, head).from_pretrained(repo, **trust)
        classes[head] = type(model).__name__
    model = transformers.AutoModelForMaskedLM.from_pretrained(repo, **trust).eval()
    with torch.no_grad():
        logits = model(torch.tensor({IDS})).logits
    tokenizer = AutoTokenizer.from_pretrained(repo, **trust)
    filled = pipeline("fill-mask", model=repo, **trust)("w10 [MASK] w11")
    torch.save(logits, "logits.pt")
    print(json.dumps({{"classes": classes, "filled": filled[0]["token_str"], "ids": tokenizer("w10 w11").input_ids}}))
"""

FINE_TUNE = f"""
    import json, torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained("{REPO}", trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained("{REPO}", trust_remote_code=True, num_labels=2)
    texts = {tiny_texts(8)!r}
    rows = [dict(tokenizer(text), labels=i % 2) for i, text in enumerate(texts)]
    arguments = TrainingArguments(
        "tuned", push_to_hub=True, hub_model_id="{TUNED}", use_cpu=True, num_train_epochs=1,
        per_device_train_batch_size=4, eval_strategy="epoch", save_strategy="epoch", learning_rate=1e-2,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    trainer.push_to_hub()
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor({IDS})).logits
    torch.save(logits, "logits.pt")
"""

LOAD_TUNED = f"""
    import torch
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        "{TUNED}", trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"], info
    with torch.no_grad():
        torch.save(model.eval()(torch.tensor({IDS})).logits, "logits.pt")
"""


def environment_of(hub: HubServer, home: Path, offline: bool = False) -> dict[str, str]:
    return client_environment(hub, home, offline=offline, hidden_packages=WITHOUT_PACKAGE)


def logits_in(home: Path) -> torch.Tensor:
    return torch.load(home / "logits.pt", weights_only=True)


@pytest.mark.usefixtures("api")
def test_the_whole_journey(hub: HubServer, tmp_path: Path) -> None:
    hub.seed(BASE, {"README.md": BASE_CARD.encode()})
    push(base_model=BASE)
    with torch.no_grad():
        expected = compact_model().eval()(torch.tensor(IDS)).logits

    # Elsewhere, without the package: every head, the pipeline and the tokenizer.
    there = tmp_path / "there"
    loaded = json.loads(run_client(LOAD_EVERYTHING, environment_of(hub, there)).splitlines()[-1])
    assert torch.equal(logits_in(there), expected)
    assert loaded["classes"]["AutoModelForMaskedLM"] == "CompactBertForMaskedLM"
    assert all(name.startswith("CompactBert") for name in loaded["classes"].values())
    assert len(loaded["classes"]) > 8
    assert loaded["ids"] == tiny_tokenizer()("w10 w11").input_ids

    # Fine-tuned there with Trainer, pushed, and loaded in a third place; then offline from its cache.
    run_client(FINE_TUNE, environment_of(hub, there))
    tuned = logits_in(there)
    third = tmp_path / "third"
    run_client(LOAD_TUNED, environment_of(hub, third))
    torch.testing.assert_close(logits_in(third), tuned, atol=5e-3, rtol=5e-3)
    assert_tuned_card(hub)
    files, config = hub.files(TUNED), json.loads(hub.files(TUNED)["config.json"])
    code = {name: content for name, content in files.items() if name.endswith(".py")}
    assert code == {name: content for name, content in hub.files(REPO).items() if name.endswith(".py")}
    assert config["auto_map"] == json.loads(hub.files(REPO)["config.json"])["auto_map"]

    again = logits_in(third)
    hub.stop()
    (third / "logits.pt").unlink()
    run_client(LOAD_TUNED, environment_of(hub, third, offline=True))
    assert torch.equal(logits_in(third), again)


def assert_tuned_card(hub: HubServer) -> None:
    """The compact card lies whole beside the one that Trainer wrote, which names the checkpoint it began with."""
    files = hub.files(TUNED)
    assert files["compact_card.md"] == hub.files(REPO)["README.md"]
    card = files["README.md"].decode()
    metadata = card.split("---\n", 2)[1]
    assert "# tuned" in card and "learning_rate: 0.01" in card
    for line in (f"base_model: {REPO}", "- compact-embeddings", "- generated_from_trainer"):
        assert line in metadata, line


SENTENCES = ["w10 w20 w30", "w11 w12", "w90"]
ENCODE = f"""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("{REPO}", trust_remote_code=True, device="cpu")
    torch.save(torch.tensor(model.encode({SENTENCES!r})), "logits.pt")
"""


@pytest.mark.usefixtures("api")
def test_sentence_transformers_from_the_hub_and_from_its_cache(hub: HubServer, tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, dense_model("BertModel"))
    dense = type(dense_model("BertModel")).from_pretrained(folder)
    compact = hce.compress(dense, "subspace", tokenizer=tiny_tokenizer(), num_subspaces=4, codebook_size=16)
    hce.push_to_hub(compact, REPO, tiny_tokenizer())
    assert {"modules.json", "1_Pooling/config.json"} <= hub.files(REPO).keys()
    assert "SentenceTransformer(" in hub.files(REPO)["README.md"].decode()
    home = tmp_path / "home"
    run_client(ENCODE, environment_of(hub, home))
    with torch.no_grad():
        rows = [tiny_tokenizer()(text, return_tensors="pt") for text in SENTENCES]
        expected = torch.cat([compact(**row).last_hidden_state.mean(1) for row in rows])
    torch.testing.assert_close(logits_in(home), expected, atol=1e-5, rtol=1e-5)
    hub.stop()
    run_client(ENCODE, environment_of(hub, home, offline=True))
    torch.testing.assert_close(logits_in(home), expected, atol=1e-5, rtol=1e-5)


LOAD_CHECKPOINTS = f"""
    import json, logging
    from transformers import AutoModel

    class Kept(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logging.getLogger().addHandler(Kept())
    said = []
    for repo, revision in {{checkpoints!r}}:
        messages = []
        try:
            AutoModel.from_pretrained(repo, trust_remote_code=True, revision=revision)
        except Exception as error:
            messages.append(repr(error))
        said.append(" ".join(messages))
    try:
        AutoModel.from_pretrained("{REPO}", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise SystemExit("loaded without trust")
    print(json.dumps(said))
"""


def is_same_code(one: bytes, other: bytes) -> bool:
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except SyntaxError:
        return False


@pytest.mark.usefixtures("api")
def test_changed_code_is_reported_where_it_runs(hub: HubServer, tmp_path: Path) -> None:
    untouched = push().commit
    edited = hub.seed(REPO, {"tied.py": hub.files(REPO)["tied.py"] + b"\n# one more line\n"}).oid
    # And damage on the way, which the client does not notice, nor Python: it hits a comment.
    damaged = hce.push_to_hub(compact_model(), TUNED).commit
    files = {name: content for name, content in hub.files(TUNED).items() if name.endswith(".py")}
    file = next(name for name, content in files.items() if is_same_code(content, corrupted(content)))
    hub.inject(Fault(kind="corrupt", method="GET", path=f"/{TUNED}/resolve/{damaged}/{file}$", times=None))
    code = LOAD_CHECKPOINTS.format(checkpoints=[(REPO, untouched), (REPO, edited), (TUNED, damaged)])
    said = json.loads(run_client(code, environment_of(hub, tmp_path / "home")).splitlines()[-1])
    assert "differ from the SHA-256" not in said[0]
    assert f"The code files of '{REPO}' are not those that were saved with it: tied.py differ" in said[1]
    assert "This code is running now." in said[1]
    assert f"not those that were saved with it: {file} differ" in said[2]
