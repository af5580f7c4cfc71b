"""Texts where none are given: words drawn by frequency, tokens drawn by frequency, or what a causal model says."""

from __future__ import annotations

import torch

from hf_compact_embeddings.evidence import made_texts as module
from hf_compact_embeddings.evidence.made_texts import made_texts
from hf_compact_embeddings.evidence.word_frequencies import Language

from ..tiny_models import VOCABULARY, tiny_model
from ..tools import tiny_tokenizer


def test_tokens_come_as_often_as_they_are_expected() -> None:
    counts = torch.zeros(VOCABULARY)
    counts[[2, 10, 20]] = torch.tensor([1000.0, 3.0, 1.0])
    texts = made_texts(tiny_model("bert"), tiny_tokenizer(), counts, None, seed=0)
    words = " ".join(texts).split()
    assert len(texts) == module._TEXTS and set(words) == {"w10", "w20"}, "special tokens stand in no text"
    assert 2.5 < words.count("w10") / words.count("w20") < 3.5


def test_rows_without_a_token_are_in_no_text() -> None:
    counts = torch.ones(VOCABULARY + 500)
    texts = made_texts(tiny_model("bert"), tiny_tokenizer(), counts, None, seed=0)
    assert all(text for text in texts)


def test_words_are_drawn_where_a_language_is_known() -> None:
    languages = {"en": Language("en", ["w10", "w20"], [0.5, 0.5])}
    texts = made_texts(tiny_model("bert"), tiny_tokenizer(), torch.ones(VOCABULARY), languages, seed=0)
    assert len(texts) == module._TEXTS and all(text.startswith("W") and text.endswith(".") for text in texts)


def test_a_causal_model_speaks_for_itself() -> None:
    model = tiny_model("llama").train()
    state, tokenizer = torch.random.get_rng_state(), tiny_tokenizer()
    with torch.no_grad():
        # It says one word only, whatever it reads.
        model.lm_head.weight.zero_()
        model.lm_head.weight[10] = 1.0
        model.model.norm.weight.fill_(100.0)
    languages = {"en": Language("en", ["w20"], [1.0])}
    first = made_texts(model, tokenizer, torch.ones(VOCABULARY), languages, seed=0)
    assert len(first) == module._OWN_TEXTS and first == made_texts(model, tokenizer, torch.ones(VOCABULARY), None, 0)
    assert first != made_texts(model, tokenizer, torch.ones(VOCABULARY), None, 1)
    assert model.training and torch.equal(torch.random.get_rng_state(), state), "nothing outside is changed"
