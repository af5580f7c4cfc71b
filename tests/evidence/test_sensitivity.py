"""What errors cost is what the model itself gives: states behind masks that enter a tied head, or gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_compact_embeddings.evidence import sensitivity
from hf_compact_embeddings.evidence.sensitivity import sensitivity_metric
from hf_compact_embeddings.modeling.architectures import find_input_table
from hf_compact_embeddings.modeling.errors import CompactConfigError

from ..tiny_models import ARCHITECTURES, tiny_model
from ..tools import assert_same_outputs, tiny_texts, tiny_tokenizer


def cost_of_scores(vectors: list[Tensor]) -> Tensor:
    """Return the mean outer product, and as much of plain distance."""
    scores = torch.stack([torch.outer(vector, vector).double() for vector in vectors]).mean(0)
    return scores / torch.linalg.eigvalsh(scores).mean() + torch.eye(len(scores)).double()


@torch.no_grad()
def test_a_masked_model_is_read_behind_masks() -> None:
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    ids = torch.tensor([tokenizer("w5 w6 w7 w8 w9 w10 w11 w12 w13")["input_ids"]])
    places = [1, 8]
    ids[0, places] = tokenizer.mask_token_id
    states = model.cls.predictions.transform(model.bert(input_ids=ids).last_hidden_state)[0]
    found = sensitivity_metric(["w5 w6 w7 w8 w9 w10 w11 w12 w13"], tokenizer, model)
    torch.testing.assert_close(found, cost_of_scores([states[place] for place in places]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_a_generating_model_is_read_everywhere(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "_TEXTS_PER_BATCH", 4)
    model, tokenizer, states = tiny_model(architecture), tiny_tokenizer(), []
    model.lm_head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][0]))
    texts = [*tiny_texts(5), "w5 w6", "w9"]
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        model(input_ids=ids, **({"decoder_input_ids": ids} if architecture == "t5" else {}))
    expected = cost_of_scores([state for text_states in states for state in text_states])
    model = tiny_model(architecture)
    torch.testing.assert_close(sensitivity_metric(texts, tokenizer, model), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_metric_and_stays_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture).train()
    width = find_input_table(model).module.embedding_dim
    metric = sensitivity_metric(tiny_texts(20), tiny_tokenizer(), model)
    assert metric.shape == (width, width) and metric.dtype == torch.float64
    assert torch.linalg.eigvalsh(metric)[0] > -1e-9 * metric.trace() and metric.trace() > 0
    assert model.training
    assert_same_outputs(model.eval(), tiny_model(architecture))


def test_a_head_of_its_own_has_no_say() -> None:
    texts, tokenizer = tiny_texts(20), tiny_tokenizer()
    model, other = tiny_model("llama-untied"), tiny_model("llama-untied")
    with torch.no_grad():
        other.lm_head.weight.mul_(-3.0)
    first, second = (sensitivity_metric(texts, tokenizer, one) for one in (model, other))
    assert torch.equal(first, second)
    tied = sensitivity_metric(texts, tokenizer, tiny_model("llama"))
    assert not torch.allclose(first / first.trace(), tied / tied.trace(), atol=1e-3)


@pytest.mark.parametrize("architecture", ["bert", "llama-untied"])
@pytest.mark.parametrize("texts", [[], [""]], ids=["none", "empty"])
def test_no_tokens(architecture: str, texts: list[str]) -> None:
    with pytest.raises(CompactConfigError, match="`texts` gave no tokens"):
        sensitivity_metric(texts, tiny_tokenizer(), tiny_model(architecture))


def test_no_more_texts_are_read_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "_TEXTS", 32)
    texts = tiny_texts(200)
    few = sensitivity_metric(texts[:32], tiny_tokenizer(), tiny_model("bert"))
    assert torch.equal(sensitivity_metric(iter(texts), tiny_tokenizer(), tiny_model("bert")), few)
