"""A tokenizer is found by whatever files hold it; a checkpoint that cannot be read is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from transformers import PreTrainedModel, T5Config

import hf_compact_embeddings as hce
from hf_compact_embeddings.checkpoints import load_compact, load_dense, load_tokenizer

from .cases import compress_tiny, first_cases
from .tools import tiny_tokenizer

CASE = first_cases()[0]


def sentencepiece_model() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog and a cat"] * 50),
        model_writer=written,
        vocab_size=30,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_file_alone_is_a_tokenizer(name: str, tmp_path: Path) -> None:
    T5Config(vocab_size=40).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) is None
    (tmp_path / name).write_bytes(sentencepiece_model())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    if name == "spiece.model":
        assert tokenizer.decode(tokenizer("the cat")["input_ids"], skip_special_tokens=True) == "the cat"


def test_a_tokenizer_of_its_own_files(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ("{}", b"", "model_type"),
        ("{bad", b"", "not a valid JSON file"),
        ('{"model_type": "bert", "architectures": ["BertModel"], "hidden_size": "wide"}', b"", "hidden_size"),
        (None, b"\x00" * 8, "header"),
    ],
)
@pytest.mark.parametrize("load", [load_dense, load_compact])
def test_what_cannot_be_read_is_named(
    load: Callable[[Path], PreTrainedModel], config: str | None, weights: bytes, reason: str, tmp_path: Path
) -> None:
    if config is None:
        compress_tiny("bert", CASE)[load is load_compact].save_pretrained(tmp_path)
    else:
        (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(hce.CheckpointError, match=f"{tmp_path.name}.*{reason if load is load_dense else ''}"):
        load(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(hce.CheckpointError, match="is no folder here"):
        load_dense(tmp_path / "nowhere")
