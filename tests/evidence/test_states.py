"""Mean contextual states are what a plain loop over the texts finds."""

from __future__ import annotations

import pytest
import torch

from hf_compact_embeddings.evidence import states
from hf_compact_embeddings.evidence.states import contextual_states

from ..tiny_models import VOCABULARY, tiny_model
from ..tools import tiny_texts, tiny_tokenizer


@pytest.mark.parametrize("architecture", ["bert", "llama", "t5"])
def test_mean_states(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_TEXTS_PER_BATCH", 4)
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
    found = contextual_states(texts, tokenizer, model)
    seen = counts > 0
    assert found.shape == (VOCABULARY, 24) and found.dtype == torch.float32
    torch.testing.assert_close(found[seen], sums[seen] / counts[seen, None], atol=1e-5, rtol=1e-4)
    assert found.isfinite().all(), "tokens that do not occur get a state too"
    assert len(found[~seen].unique(dim=0)) == int((~seen).sum())


def test_training_mode_is_left_as_it_is_and_adds_no_noise() -> None:
    model, tokenizer, texts = tiny_model("bert"), tiny_tokenizer(), tiny_texts(5)
    wanted = contextual_states(texts, tokenizer, model)
    model.train()
    assert torch.equal(contextual_states(texts, tokenizer, model), wanted)
    assert model.training
