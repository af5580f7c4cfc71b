"""A tokenizer is found by whatever files hold it, and missed only where there is none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from transformers import T5Config

from hf_compact_embeddings.checkpoints import load_tokenizer

from .tools import tiny_tokenizer


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
