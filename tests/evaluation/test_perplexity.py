"""Perplexity, and how far a compact model's predictions are from the original's, beside the same written out."""

from __future__ import annotations

import math

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.evaluation import perplexity as module
from hf_compact_embeddings.evaluation.perplexity import predictions

from ..tiny_models import tiny_model
from ..tools import tiny_texts, tiny_tokenizer


def two_models() -> tuple:
    dense = tiny_model("llama").eval()
    with torch.no_grad():
        dense.get_input_embeddings().weight.mul_(20.0)
    return dense, hce.compress(dense, "scalar", bits=2)


@torch.no_grad()
def test_two_causal_models_on_one_text() -> None:
    dense, compact = two_models()
    tokenizer, texts = tiny_tokenizer(), tiny_texts(60)
    found = predictions([dense, compact], tokenizer, texts, max_length=20)
    pieces = torch.tensor(list(module.stream_pieces(texts, tokenizer, 20)))
    one, other = (model(input_ids=pieces).logits[:, :-1].log_softmax(-1) for model in (dense, compact))
    apart = (one.exp() * (one - other)).sum(-1)
    assert found.tokens == apart.numel() and found.kl == pytest.approx(float(apart.mean()), rel=1e-4)
    low, high = found.kl_interval_95
    assert low < found.kl < high
    reach = 2.1 * float(apart.mean(1).std()) / len(pieces) ** 0.5
    assert (high - low) / 2 == pytest.approx(reach, rel=0.1)
    assert found.top1_agreement == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).float().mean()))
    losses = [-float(scores.gather(-1, pieces[:, 1:, None]).mean()) for scores in (one, other)]
    assert found.perplexities == pytest.approx([math.exp(loss) for loss in losses], rel=1e-4)
    decoded = tokenizer.batch_decode(pieces[:, 1:])
    bits = [loss * apart.numel() / math.log(2) / sum(len(text) for text in decoded) for loss in losses]
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-4)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_how_many_scores_are_held_changes_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, texts = tiny_model(architecture), tiny_tokenizer(), tiny_texts(100)
    compact = hce.compress(model, "scalar", bits=2)
    found = predictions([model, compact], tokenizer, texts, max_length=16)
    monkeypatch.setattr(module, "_SCORES", 3 * 16 * model.config.vocab_size)
    again = predictions([model, compact], tokenizer, texts, max_length=16)
    assert again.tokens == found.tokens and again.kl == pytest.approx(found.kl, rel=1e-4)
    assert again.perplexities == pytest.approx(found.perplexities, rel=1e-5)


def test_a_model_is_as_it_was_and_no_divergence_from_itself() -> None:
    model = tiny_model("bert").train()
    found = predictions([model, model], tiny_tokenizer(), tiny_texts(60))
    assert model.training and found.kl == 0.0 and found.top1_agreement == 1.0 and found.bits_per_byte is None
    assert found.kl_interval_95 is None or found.kl_interval_95 == (0.0, 0.0)


def test_evaluate_tells_how_far_predictions_are() -> None:
    dense, compact = two_models()
    result = hce.evaluate(
        compact, task="perplexity", tokenizer=tiny_tokenizer(), data=tiny_texts(200), against=dense, max_length=32
    )
    assert list(result.metrics) == ["perplexity", "bits_per_byte", "kl", "top1_agreement"]
    kl = result.to_dict()["metrics"]["kl"]
    assert kl["interval_95"][0] < kl["compact"]["mean"] < kl["interval_95"][1] and "original" not in kl
    (line,) = [line for line in str(result).splitlines() if line.startswith("kl ")]
    assert "±" in line
    alone = hce.evaluate(compact, task="perplexity", tokenizer=tiny_tokenizer(), data=tiny_texts(200), max_length=32)
    assert list(alone.metrics) == ["perplexity", "bits_per_byte"]
    assert alone.metrics["perplexity"].compact == pytest.approx(result.metrics["perplexity"].compact)


@pytest.mark.parametrize("other", [{"vocab_size": 130}, {"architecture": "bert"}])
def test_models_that_predict_otherwise_are_told(other: dict) -> None:
    dense = tiny_model(**{"architecture": "llama", **other})
    _, compact = two_models()
    with pytest.raises(hce.CompactConfigError, match="do not predict the same tokens in the same way"):
        hce.evaluate(compact, task="perplexity", tokenizer=tiny_tokenizer(), data=tiny_texts(60), against=dense)
