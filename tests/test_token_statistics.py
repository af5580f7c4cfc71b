"""Token counts and mean contextual states are what a plain loop over the texts finds."""

from __future__ import annotations

import pytest
import torch

from hf_compact_embeddings import token_statistics
from hf_compact_embeddings.modeling.errors import CompactConfigError
from hf_compact_embeddings.token_statistics import contextual_states, count_tokens

from .tiny_models import VOCABULARY, tiny_model
from .tools import tiny_texts, tiny_tokenizer


def test_counts() -> None:
    counts = count_tokens(["w5 w6 w5", "", "nonsense w119"], tiny_tokenizer(), VOCABULARY)
    assert counts.shape == (VOCABULARY,)
    wanted = {1: 1, 2: 2, 3: 2, 5: 2, 6: 1, 119: 1}
    assert {i: int(n) for i, n in enumerate(counts) if n} == wanted


def test_counts_of_many_texts_and_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*tiny_texts(150), " ".join(["w7"] * 5_000)]
    whole = count_tokens(texts, tiny_tokenizer(), VOCABULARY)
    assert whole.sum() == 150 * 10 + 5_002
    monkeypatch.setattr(token_statistics, "_TEXTS_PER_BATCH", 7)
    assert torch.equal(count_tokens(iter(texts), tiny_tokenizer(), VOCABULARY), whole)


def test_tokens_beyond_the_table_are_not_counted() -> None:
    counts = count_tokens(["w5 w119"], tiny_tokenizer(), 100)
    assert counts.shape == (100,) and counts.sum() == 3


@pytest.mark.parametrize("texts", [[], [""], iter([])], ids=["none", "empty", "iterator"])
def test_no_tokens(texts) -> None:
    with pytest.raises(CompactConfigError, match="`texts` gave no tokens"):
        count_tokens(texts, tiny_tokenizer(), VOCABULARY)


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_mean_states(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_statistics, "_TEXTS_PER_BATCH", 4)
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    texts = [*tiny_texts(9), "w5 w6", "w9"]
    encoder = model.get_encoder() if model.config.is_encoder_decoder else getattr(model, model.base_model_prefix)
    sums, counts = torch.zeros(VOCABULARY, 24), torch.zeros(VOCABULARY)
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            for token, state in zip(ids[0], encoder(input_ids=ids).last_hidden_state[0], strict=True):
                sums[token] += state
                counts[token] += 1
    states = contextual_states(texts, tokenizer, model)
    seen = counts > 0
    assert states.shape == (VOCABULARY, 24) and states.dtype == torch.float32
    torch.testing.assert_close(states[seen], sums[seen] / counts[seen, None], atol=1e-5, rtol=1e-4)
    assert states.isfinite().all(), "tokens that do not occur get a state too"
    assert len(states[~seen].unique(dim=0)) == int((~seen).sum())


def test_training_mode_is_left_as_it_is_and_adds_no_noise() -> None:
    model, tokenizer, texts = tiny_model("bert"), tiny_tokenizer(), tiny_texts(5)
    wanted = contextual_states(texts, tokenizer, model)
    model.train()
    assert torch.equal(contextual_states(texts, tokenizer, model), wanted)
    assert model.training
