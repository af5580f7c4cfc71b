"""What errors cost is what the model itself shows: how they move the scores of a tied head, or the states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_compact_embeddings.evidence import score_sensitivity, sensitivity
from hf_compact_embeddings.evidence.sensitivity import find_sensitivity
from hf_compact_embeddings.modeling.architectures import find_input_table
from hf_compact_embeddings.modeling.errors import CompactConfigError

from ..tiny_models import ARCHITECTURES, tiny_model
from ..tools import assert_same_outputs, tiny_texts, tiny_tokenizer

TEXT = "w5 w6 w7 w8 w9 w10 w11 w12 w13"


def head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the rows cost as inputs, and all smoothing."""
    monkeypatch.setattr(torch.autograd, "grad", lambda _, rows, **__: [torch.zeros_like(row) for row in rows])
    monkeypatch.setattr(score_sensitivity, "_SHRINKAGE", 0.0)
    monkeypatch.setattr(score_sensitivity, "_SHARE_OF_COMMON", 0.0)


def covariance(states: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the covariance of states, weighted by how much doubt there is, and the doubt of each token."""
    predicted = logits.double().softmax(-1)
    doubts = predicted * (1 - predicted)
    weights = doubts.sum(1)
    return torch.cov(states.double().T, correction=0, aweights=weights) * weights.mean(), doubts.sum(0)


@torch.no_grad()
def test_a_masked_model_is_read_behind_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    head_alone(monkeypatch)
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    places = [1, 8]
    ids[0, places] = tokenizer.mask_token_id
    output = model.bert(input_ids=ids).last_hidden_state[0, places]
    states, scores = model.cls.predictions.transform(output), model.cls.predictions(output)
    found = find_sensitivity([TEXT], tokenizer, model)
    metric, doubts = covariance(states, scores)
    torch.testing.assert_close(found.metric, metric, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.doubts, doubts, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_a_generating_model_is_read_everywhere(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head_alone(monkeypatch)
    monkeypatch.setattr(score_sensitivity, "_TEXTS_PER_BATCH", 4)
    model, tokenizer, states = tiny_model(architecture), tiny_tokenizer(), []
    model.lm_head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][0]))
    texts, logits = [*tiny_texts(5), "w5 w6", "w9"], []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits.append(
                model(input_ids=ids, **({"decoder_input_ids": ids} if architecture == "t5" else {})).logits[0]
            )
    found = find_sensitivity(texts, tokenizer, tiny_model(architecture))
    metric, doubts = covariance(torch.cat(states), torch.cat(logits))
    torch.testing.assert_close(found.metric, metric, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.doubts, doubts, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["input", "head"])
def test_the_metric_foretells_how_far_errors_move_predictions(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half δᵀMδ, in nats a token: of small errors in what is read, or in the head."""
    model, tokenizer, texts = tiny_model("llama"), tiny_tokenizer(), tiny_texts(64)
    nn.init.normal_(model.lm_head.weight, std=0.5)
    monkeypatch.setattr(score_sensitivity, "_SHARE_OF_COMMON", 1.0)
    monkeypatch.setattr(score_sensitivity, "_SHRINKAGE", 0.0)
    metric = find_sensitivity(texts, tokenizer, model).metric
    monkeypatch.setattr(torch.autograd, "grad", lambda _, rows, **__: [torch.zeros_like(row) for row in rows])
    of_head = find_sensitivity(texts, tokenizer, model).metric
    metric = of_head if side == "head" else metric - of_head
    table, encoded = model.get_input_embeddings().weight, tokenizer(texts, padding=True, return_tensors="pt")
    kept, ids = encoded["attention_mask"].bool(), encoded["input_ids"]
    noise = 0.01 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows, head = (table + noise, table) if side == "input" else (table, table + noise)
        before = model(**encoded).logits[kept].log_softmax(-1)
        states = model.model(inputs_embeds=rows[ids], attention_mask=encoded["attention_mask"]).last_hidden_state
        after = (states[kept] @ head.T).log_softmax(-1)
    moved = float((before.exp() * (before - after)).sum(-1).mean())
    foretold = float((noise.double() @ metric * noise).sum(1).mean()) / 2
    assert 0.7 < foretold / moved < 1.4


def test_what_a_model_does_to_scores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that divides its scores is less sensitive to errors in them, by the square."""
    head_alone(monkeypatch)
    model, tokenizer, states = tiny_model("gpt2"), tiny_tokenizer(), []
    model.lm_head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][0]))
    with torch.no_grad():
        logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0] / 4
    expected, _ = covariance(states[0], logits)
    forward = model.forward

    def divided(*arguments: object, **named: object) -> object:
        output = forward(*arguments, **named)
        output.logits = output.logits / 4
        return output

    model.forward = divided
    found = find_sensitivity([TEXT], tokenizer, model).metric
    torch.testing.assert_close(found, expected / 16, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_metric_and_stays_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture).train()
    width = find_input_table(model).module.embedding_dim
    found = find_sensitivity(tiny_texts(20), tiny_tokenizer(), model)
    metric = found.metric
    assert metric.shape == (width, width) and metric.dtype == torch.float64
    assert torch.linalg.eigvalsh(metric)[0] > 0
    assert (found.doubts is None) == (not sensitivity.scoring_heads(model, find_input_table(model)))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert_same_outputs(model.eval(), tiny_model(architecture))


def test_scaled_rows_cost_by_the_square_of_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_sensitivity, "_SHRINKAGE", 0.0)
    tokenizer, texts = tiny_tokenizer(), tiny_texts(8)
    model = tiny_model("gemma3_text")
    scale = find_input_table(model).scale
    assert scale != 1.0
    found = find_sensitivity(texts, tokenizer, model).metric
    monkeypatch.setattr(score_sensitivity, "embedding_scale", lambda _: 0.0)
    scored = find_sensitivity(texts, tokenizer, model).metric
    monkeypatch.setattr(score_sensitivity, "embedding_scale", lambda _: 1.0)
    unscaled = find_sensitivity(texts, tokenizer, model).metric
    torch.testing.assert_close(found - scored, scale**2 * (unscaled - scored), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("architecture", ["bert", "llama-untied"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_callers_do_with_gradients_does_not_matter(architecture: str, mode: type) -> None:
    model, tokenizer, texts = tiny_model(architecture), tiny_tokenizer(), tiny_texts(8)
    expected = find_sensitivity(texts, tokenizer, model).metric
    with mode():
        assert torch.equal(find_sensitivity(texts, tokenizer, model).metric, expected)


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertModel"])
def test_one_thread_and_two_find_the_same(head: str) -> None:
    """Sums over as many tokens are cut into parts for threads, where nothing keeps torch from it."""
    model, tokenizer, texts = tiny_model("bert", head, vocab_size=50_000), tiny_tokenizer(), tiny_texts(64)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(find_sensitivity(texts, tokenizer, model))
    torch.set_num_threads(before)
    one, two = (vars(sensitivity) for sensitivity in found)
    assert all(one[name] is two[name] is None or torch.equal(one[name], two[name]) for name in one)


def test_a_head_of_its_own_has_no_say() -> None:
    texts, tokenizer = tiny_texts(20), tiny_tokenizer()
    model, other = tiny_model("llama-untied"), tiny_model("llama-untied")
    with torch.no_grad():
        other.lm_head.weight.mul_(-3.0)
    first, second = (find_sensitivity(texts, tokenizer, one).metric for one in (model, other))
    assert torch.equal(first, second)
    tied = find_sensitivity(texts, tokenizer, tiny_model("llama")).metric
    assert not torch.allclose(first / first.trace(), tied / tied.trace(), atol=1e-3)


def test_large_vocabularies_are_scored_at_few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, tokenizer, model = tiny_texts(40), tiny_tokenizer(), tiny_model("llama")
    every = find_sensitivity(texts, tokenizer, model).doubts
    monkeypatch.setattr(score_sensitivity, "_SCORES", 20 * model.config.vocab_size)
    some = find_sensitivity(texts, tokenizer, model).doubts
    assert every is not None and some is not None
    # Of some 400 positions in three batches; each has the doubts of one prediction.
    assert 0.05 < float(some.sum() / every.sum()) < 0.3


@pytest.mark.parametrize("architecture", ["bert", "llama-untied"])
@pytest.mark.parametrize("texts", [[], [""]], ids=["none", "empty"])
def test_no_tokens(architecture: str, texts: list[str]) -> None:
    with pytest.raises(CompactConfigError, match="`texts` gave no tokens"):
        find_sensitivity(texts, tiny_tokenizer(), tiny_model(architecture))


@pytest.mark.parametrize("architecture", ["bert", "llama-untied"])
def test_no_more_texts_are_read_than_needed(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_compact_embeddings.evidence.texts._TEXTS_TO_CHOOSE_FROM", 32)
    texts = tiny_texts(200)
    few = find_sensitivity(texts[:32], tiny_tokenizer(), tiny_model(architecture)).metric
    assert torch.equal(find_sensitivity(iter(texts), tiny_tokenizer(), tiny_model(architecture)).metric, few)
