"""The objective without a vocabulary: what is replaced, how it is labelled, and what is pretrained by it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

import hf_compact_embeddings as hce
from hf_compact_embeddings import CompactHashTokenizer
from hf_compact_embeddings.training.token_manipulation import (
    DataCollatorForTokenManipulation,
    encoder_of,
    packed_rows,
    token_manipulation_model,
)

from ..tools import REPOSITORY, assert_same_state, last_json, run_python, tiny_texts, tiny_tokenizer

HASHES = pytest.mark.parametrize("hashing", ["md", "lsh"])
SHAPE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = [" ".join(f"a{row}b{place}" for place in range(30)) for row in range(64)]


def tokenizers() -> list[transformers.PreTrainedTokenizerBase]:
    return [CompactHashTokenizer(), CompactHashTokenizer(hashing="lsh"), tiny_tokenizer()]


def compact_config(tokenizer: CompactHashTokenizer, **options) -> transformers.PreTrainedConfig:
    hashed = hce.HashConfig.for_tokenizer(tokenizer, **options)
    return hce.CompactBertConfig(vocab_size=len(tokenizer), compact_embeddings=hashed, **SHAPE)


@HASHES
def test_labels_say_what_happened(hashing: str) -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing=hashing)
    collator = DataCollatorForTokenManipulation(tokenizer)
    counts = torch.zeros(3)
    for _ in range(20):
        encoded = tokenizer(WORDS)
        rows = [{name: encoded[name][index] for name in tokenizer.model_input_names} for index in range(len(WORDS))]
        clean = tokenizer.pad(rows, return_tensors="pt")
        batch = collator(rows)
        ids, labels, before = batch["input_ids"], batch["labels"], clean["input_ids"]
        special = before < 5
        assert (labels[special] == -100).all() and (labels[~special] >= 0).all()
        assert torch.equal(ids[special], before[special])
        assert torch.equal(ids != before, labels > 0), "a token that is replaced by itself counts as kept"
        for row, place in (labels == 1).nonzero().tolist():
            assert ids[row, place] in before[row][~special[row]], "shuffled within its row"
        counts += torch.bincount(labels[~special], minlength=3)
        assert torch.equal(batch["attention_mask"], clean["attention_mask"])
        if hashing == "lsh":
            signature_of = dict(zip(before.flatten().tolist(), clean["signatures"].flatten(0, 1).tolist(), strict=True))
            moved = zip(ids.flatten().tolist(), batch["signatures"].flatten(0, 1).tolist(), strict=True)
            assert all(signature_of[word] == signature for word, signature in moved)
    shares = counts / counts.sum()
    # Of those that are not shuffled (90 %), one in ten is drawn at random.
    torch.testing.assert_close(shares, torch.tensor([0.81, 0.10, 0.09]), atol=0.01, rtol=0)


def test_probabilities_of_one_and_none() -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer()
    rows = [tokenizer(text) for text in WORDS]
    shuffled = DataCollatorForTokenManipulation(tokenizer, 1.0, 0.0)(rows)["labels"]
    assert shuffled[shuffled >= 0].eq(1).all(), "another token than itself, in rows of different words"
    drawn = DataCollatorForTokenManipulation(tokenizer, 0.0, 1.0)(rows)["labels"]
    assert drawn[drawn >= 0].float().mean() > 1.9
    kept = DataCollatorForTokenManipulation(tokenizer, 0.0, 0.0)(rows)
    assert kept["labels"].max() == 0
    assert torch.equal(kept["input_ids"], tokenizer.pad(rows, return_tensors="pt")["input_ids"])
    for field, value in (("shuffle_probability", 1.5), ("random_probability", -0.1), ("pool_size", 0)):
        with pytest.raises(hce.CompactConfigError, match=f"`{field}` is {value}"):
            DataCollatorForTokenManipulation(tokenizer, **{field: value})


def test_rows_with_few_words() -> None:
    for tokenizer in tokenizers():
        collator = DataCollatorForTokenManipulation(tokenizer, 1.0, 1.0)
        for texts in (["w5", ""], ["", ""], ["w5 w6"]):
            batch = collator([tokenizer(text) for text in texts])
            assert batch["labels"].shape == batch["input_ids"].shape
    batch = DataCollatorForTokenManipulation(CompactHashTokenizer(), 1.0, 0.0, pad_to_multiple_of=8)(
        [CompactHashTokenizer()("one two")]
    )
    first, second = CompactHashTokenizer()("two one")["input_ids"][1:3]
    assert batch["input_ids"].tolist() == [[2, first, second, 3, 0, 0, 0, 0]]


def test_random_tokens_come_from_what_was_seen() -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing="lsh")
    collator = DataCollatorForTokenManipulation(tokenizer, 0.0, 1.0, pool_size=40)
    known = set()
    for text in WORDS[:4]:
        batch = collator([tokenizer(text)])
        known |= set(tokenizer(text)["input_ids"])
        assert set(batch["input_ids"].flatten().tolist()) <= known
    assert not set(batch["input_ids"].flatten().tolist()) & set(tokenizer(WORDS[0])["input_ids"][1:-1]), "forgotten"


def test_each_different_token_is_as_likely_as_any_other() -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing="lsh")
    collator = DataCollatorForTokenManipulation(tokenizer, 0.0, 1.0)
    often, once = tokenizer("often once")["input_ids"][1:3]
    row = tokenizer(" ".join(["often"] * 99 + ["once"]))
    signatures = dict(zip(row["input_ids"], row["signatures"], strict=True))
    batch = collator([row] * 20)
    assert 0.4 < float((batch["input_ids"] == once).sum()) / float((batch["labels"] >= 0).sum()) < 0.6
    for one, signature in ((often, signatures[often]), (once, signatures[once])):
        assert (batch["signatures"][batch["input_ids"] == one] == torch.tensor(signature)).all(), "they belong together"


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["md", "lsh", "wordpiece"])
def test_texts_are_joined_and_cut(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    texts = tiny_texts(7)
    rows = packed_rows(tokenizer, texts, 10)
    assert list(map(len, rows["input_ids"])) == [10] * 7
    start, end = tokenizer("")["input_ids"]
    assert all(row[0] == start and row[-1] == end for row in rows["input_ids"])
    words = [word for row in rows["input_ids"] for word in row[1:-1]]
    assert words == [word for text in texts for word in tokenizer(text)["input_ids"][1:-1]]
    assert all(list(map(len, column)) == [10] * 7 for column in rows.values())
    shorter = packed_rows(tokenizer, texts[:1], 7)
    assert list(map(len, shorter["input_ids"])) == [7, 5]
    mapped = Dataset.from_dict({"text": texts}).map(
        lambda batch: packed_rows(tokenizer, batch["text"], 10), batched=True, remove_columns="text"
    )
    assert len(mapped) == 7
    with pytest.raises(hce.CompactConfigError, match="`length` is 2"):
        packed_rows(tokenizer, texts, 2)


@HASHES
def test_the_encoder_without_its_head_takes_others(hashing: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing=hashing)
    model = token_manipulation_model(compact_config(tokenizer))
    assert type(model) is hce.CompactBertForTokenClassification
    assert model.config.id2label == {0: "kept", 1: "shuffled", 2: "random"}
    batch = DataCollatorForTokenManipulation(tokenizer)([tokenizer(text) for text in WORDS[:4]])
    output = model(**batch)
    assert output.logits.shape[-1] == 3
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    encoder = encoder_of(model)
    assert type(encoder) is hce.CompactBertModel
    encoder.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    base = AutoModel.from_pretrained(tmp_path / "model")
    assert_same_state(base.encoder, model.bert.encoder)
    table = model.get_input_embeddings()
    table.round_to_storage()
    assert_same_state(base.get_input_embeddings(), table)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=5)
    assert classifier.config.num_labels == 5 and classifier.config.id2label[0] == "LABEL_0"
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").config.num_labels == 2
    assert_same_state(classifier.bert.encoder, model.bert.encoder)
    code = """
        import json, sys, torch
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
        inputs = tokenizer("one two three", return_tensors="pt")
        AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)(**inputs)
        with torch.no_grad():
            states = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)(**inputs).last_hidden_state
        print(json.dumps(states.tolist()))
    """
    with torch.no_grad():
        states = base(**tokenizer("one two three", return_tensors="pt")).last_hidden_state
    found = last_json(run_python(code, tmp_path / "model", home=tmp_path / "home", without_package=True))
    torch.testing.assert_close(torch.tensor(found), states)


def test_a_dense_model_is_pretrained_the_same_way() -> None:
    model = token_manipulation_model(BertConfig(vocab_size=120, **SHAPE))
    tokenizer = tiny_tokenizer()
    batch = DataCollatorForTokenManipulation(tokenizer)([tokenizer(text) for text in tiny_texts(4)])
    assert model(**batch).loss.isfinite()
    assert type(encoder_of(model)) is transformers.BertModel


def test_replaced_words_can_be_learned() -> None:
    """Words that always come in the same order: what is out of order is soon seen."""
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing="lsh")
    # Without dropout, so few steps are enough; evaluation mode turns it off and stops no gradient.
    model = token_manipulation_model(compact_config(tokenizer)).eval()
    collator = DataCollatorForTokenManipulation(tokenizer)
    rows = [tokenizer("one two three four five six seven eight nine ten")] * 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    found = 0.0
    for _ in range(120):
        batch = collator(rows)
        output = model(**batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        changed = batch["labels"] > 0
        found = float((output.logits.argmax(-1) > 0)[changed].float().mean())
    assert found > 0.9


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_the_example_pretrains_and_resumes(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join([*tiny_texts(200), "", "Grüße, 世界!"]))
    main = runpy.run_path(str(REPOSITORY / "examples" / "pretrain_hashformer.py"))["main"]
    overrides = [f"{name}={value}" for name, value in SHAPE.items()]
    command = ["--train_files", str(tmp_path / "corpus.txt"), "--validation_files", str(tmp_path / "corpus.txt")]
    command += ["--overrides", *overrides, "--max_length", "16", "--output_dir", str(tmp_path / "run")]
    command += ["--per_device_train_batch_size", "4", "--use_cpu", "--bf16", "--save_steps", "3", "--disable_tqdm", "1"]
    command += ["--report_to", "none", *(["--streaming"] if streaming else [])]
    main([*command, "--max_steps", "3"])
    assert json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3
    main([*command, "--max_steps", "5"])
    log = json.loads((tmp_path / "run" / "checkpoint-5" / "trainer_state.json").read_text())
    assert log["global_step"] == 5
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert type(tokenizer) is CompactHashTokenizer
    assert classifier(**tokenizer(["a b", "c"], padding=True, return_tensors="pt")).logits.shape == (2, 2)
