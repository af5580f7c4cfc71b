"""The tokenizer without a vocabulary in datasets, collators, Trainer and pipelines, used as any other is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.modeling_outputs import TokenClassifierOutput

from hf_compact_embeddings.modeling.hashing import expand_bits, unpack_signatures
from hf_compact_embeddings.modeling.tokenization_hash import CompactHashTokenizer

HASHES = pytest.mark.parametrize("hashing", ["md", "lsh"])
ROWS = {
    "text": ["good film", "a bad, bad film", "good", "quite bad"] * 4,
    "label": [1, 0, 1, 0] * 4,
}
TINY = dict(
    vocab_size=5,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=32,
    pad_token_id=0,
)


class HashInputs:
    """Gives a native BERT the bits of each word as its input; special tokens have rows of the native table."""

    def forward(self, input_ids: Tensor, signatures: Tensor | None = None, **inputs: Any) -> Any:
        bits = expand_bits(input_ids) if signatures is None else unpack_signatures(signatures)
        special = input_ids < self.config.vocab_size
        rows = self.get_input_embeddings()(input_ids.where(special, 0))
        words = 2.0 * bits[..., :16] - 1
        return super().forward(inputs_embeds=torch.where(special.unsqueeze(-1), rows, words), **inputs)


class HashClassifier(HashInputs, BertForSequenceClassification):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        signatures: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TokenClassifierOutput:
        kept = dict(attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels)
        return super().forward(input_ids, signatures, **kept)


class HashTagger(HashInputs, BertForTokenClassification):
    """Tags tokens."""


def encoded(tokenizer: CompactHashTokenizer) -> Dataset:
    return Dataset.from_dict(ROWS).map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns="text")


@HASHES
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_mapped_dataset_is_collated(hashing: str, side: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing, padding_side=side)
    dataset = encoded(tokenizer)
    expected = tokenizer(ROWS["text"][:4], padding=True, return_tensors="pt")
    for rows in (dataset, dataset.with_format("torch")):
        batch = DataCollatorWithPadding(tokenizer)([rows[index] for index in range(4)])
        assert batch.pop("labels").tolist() == ROWS["label"][:4]
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert batch[name].dtype == tensor.dtype and torch.equal(batch[name], tensor), name
    wide = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)([dataset[0], dataset[1]])
    assert all(tensor.shape[1] == 8 for name, tensor in wide.items() if name != "labels")


@HASHES
def test_padding_alone_gives_what_encoding_with_padding_gives(hashing: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    expected = tokenizer(ROWS["text"][:3], padding="max_length", max_length=9, padding_side="left").data
    separate = [tokenizer(text) for text in ROWS["text"][:3]]
    assert as_lists(tokenizer.pad(separate, padding="max_length", max_length=9, padding_side="left")) == expected
    together = tokenizer(ROWS["text"][:3])
    assert as_lists(tokenizer.pad(together, padding="max_length", max_length=9, padding_side="left")) == expected
    one = tokenizer.pad(tokenizer(ROWS["text"][0]), padding="max_length", max_length=9, padding_side="left")
    assert as_lists(one) == {name: values[0] for name, values in expected.items()}


def as_lists(batch: Any) -> dict[str, Any]:
    data = dict(batch)
    if "signatures" in data:
        nested = isinstance(data["input_ids"][0], list)
        rows = data["signatures"] if nested else [data["signatures"]]
        pairs = [[tuple(pair) for pair in row] for row in rows]
        data["signatures"] = pairs if nested else pairs[0]
    return data


def test_labels_of_tokens_are_collated() -> None:
    tokenizer = CompactHashTokenizer(hashing="lsh")
    rows = []
    for words in (["New", "York"], ["in", "Paris", "today"]):
        row = tokenizer(words, is_split_into_words=True)
        rows.append({**row, "labels": [-100 if word is None else word for word in row.word_ids()]})
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    assert batch["labels"].tolist() == [[-100, 0, 1, -100, -100], [-100, 0, 1, 2, -100]]
    assert batch["signatures"].shape == (2, 5, 2)


def test_the_fingerprint_of_a_map_does_not_depend_on_what_was_encoded() -> None:
    tokenizer = CompactHashTokenizer(hashing="lsh")
    before = Hasher.hash(tokenizer)
    tokenizer(ROWS["text"])
    assert Hasher.hash(tokenizer) == before
    assert Hasher.hash(CompactHashTokenizer(hashing="lsh", hash_seed=1)) != before


@HASHES
def test_a_tokenizer_survives_a_fingerprint_that_empties_it(hashing: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    before = tokenizer(ROWS["text"]).data
    tokenizer.cache = {}  # as `datasets` 4.0 does
    assert tokenizer.convert_ids_to_tokens(before["input_ids"][0])
    tokenizer.cache = {}
    assert as_lists(tokenizer(ROWS["text"])) == as_lists(before)


@HASHES
def test_trainer_trains_on_it(hashing: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing=hashing)
    arguments = TrainingArguments(
        tmp_path, max_steps=30, learning_rate=0.02, per_device_train_batch_size=8, use_cpu=True, logging_steps=10
    )
    trainer = Trainer(
        HashClassifier(BertConfig(**TINY)), arguments, train_dataset=encoded(tokenizer), processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    loaded = CompactHashTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.hash_settings == tokenizer.hash_settings


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@HASHES
def test_pipelines_take_it(hashing: str) -> None:
    torch.manual_seed(0)
    tokenizer = CompactHashTokenizer(hashing=hashing, model_max_length=32)
    model = HashClassifier(BertConfig(**TINY)).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    alone = [classify(text)[0]["score"] for text in ROWS["text"][:4]]
    together = [found["score"] for found in classify(ROWS["text"][:4], batch_size=4)]
    assert together == pytest.approx(alone, abs=1e-6)
    tagger = pipeline("token-classification", model=HashTagger(BertConfig(**TINY)).eval(), tokenizer=tokenizer)
    text = "In  Zürich, Ωmega"
    found = tagger(text, ignore_labels=[])
    assert [text[entity["start"] : entity["end"]] for entity in found] == ["In", "Zürich", ",", "Ωmega"]
    assert [entity["word"] for entity in found] == ["in", "zürich", ",", "ωmega"]
    grouped = tagger(text, aggregation_strategy="first", stride=4)
    assert grouped[0]["start"] == 0 and grouped[-1]["end"] == len(text)
