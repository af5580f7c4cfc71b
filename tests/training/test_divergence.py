"""Losses by tiles are those over all scores, with the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hf_compact_embeddings as hce
from hf_compact_embeddings.kernels import score_tiles as tiles
from hf_compact_embeddings.training.divergence import divergence
from hf_compact_embeddings.training.losses import Target, need_whole_scores, run, target_of, total_loss

from ..cases import Case, compress_tiny, first_cases, for_each_method
from ..tiny_models import tiny_inputs, tiny_model

CASE = first_cases("project", "dense")[0]


def models_apart(architecture: str, case: Case) -> tuple:
    """Return a teacher and a student that is far from it: between near ones a gradient is no more than rounding."""
    return moved_apart(*compress_tiny(architecture, case))


def moved_apart(teacher, compact) -> tuple:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in compact.parameters():
            value += 0.3 * value.square().mean().sqrt() * torch.randn(value.shape, generator=generator)
    return teacher, compact


def loss_and_gradients(
    teacher, compact, whole_scores: bool, loss: str = "logits"
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return a loss, "logits", "best" (to the best tokens, which a cache has) or "labels", and its gradients."""
    inputs = tiny_inputs(teacher)
    mask = inputs["attention_mask"]
    positions = mask.bool() & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)
    losses = {"labels" if loss == "labels" else "logits": 1.0}
    target = target_of(run(teacher, teacher, inputs, positions, whole_scores), mask, losses)
    if loss == "best":
        with torch.no_grad():
            best = run(teacher, teacher, inputs, positions).logits.log_softmax(-1).topk(9)
        target = Target(best_ids=best.indices, best_scores=best.values)
    student = run(compact, compact, inputs, positions, whole_scores)
    assert (student.logits is None) != whole_scores
    found, _ = total_loss(student, target, mask, inputs["input_ids"].roll(-1, 1)[positions], losses)
    compact.zero_grad()
    found.backward()
    gradients = {name: value.grad.clone() for name, value in compact.named_parameters() if value.grad is not None}
    return float(found.detach()), gradients


def assert_the_same(one, other) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-7)
    assert one[1].keys() == other[1].keys()
    # Some gradients, as of the biases of keys, are zero but for rounding.
    largest = max(float(value.abs().max()) for value in other[1].values())
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], atol=1e-5 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("loss", ["logits", "best", "labels"])
@for_each_method("project")
def test_each_method(case: Case, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_SCORES_PER_TILE", 300)
    teacher, compact = models_apart("llama", case)
    whole = loss_and_gradients(teacher, copy.deepcopy(compact), True, loss)
    assert whole[0] > 1e-4
    assert_the_same(loss_and_gradients(teacher, compact, False, loss), whole)


@pytest.mark.parametrize("loss", ["logits", "labels"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gemma3_text", "electra"])
def test_heads_with_a_bias_and_scaled_tables(architecture: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_SCORES_PER_TILE", 300)
    teacher, compact = models_apart(architecture, CASE)
    assert not need_whole_scores(compact, teacher, tiny_inputs(teacher))
    whole = loss_and_gradients(teacher, copy.deepcopy(compact), True, loss)
    assert_the_same(loss_and_gradients(teacher, compact, False, loss), whole)


def test_only_what_trains_has_gradients() -> None:
    teacher, compact = compress_tiny("llama", CASE)
    for trained in ("norm", "compact_embedding"):
        for name, value in compact.named_parameters():
            value.requires_grad_(trained in name or (trained != "norm" and name.startswith(compact.input_table_path)))
            value.grad = None
        _, found = loss_and_gradients(teacher, compact, False)
        assert found.keys() == {name for name, value in compact.named_parameters() if value.requires_grad}


def test_a_model_that_caps_its_scores_is_read_whole() -> None:
    capped = tiny_model("gemma3_text")
    capped.config.final_logit_softcapping = 2.0
    inputs = tiny_inputs(capped)
    plain = tiny_model("gemma3_text")
    assert need_whole_scores(capped, plain, inputs) and need_whole_scores(plain, capped, inputs)
    assert not need_whole_scores(plain, plain, inputs)
    assert need_whole_scores(capped, None, inputs) and not need_whole_scores(plain, None, inputs)


def test_scores_far_apart() -> None:
    """The sums over tiles stay finite, and exact, where exponentials would not."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 1000) for _ in range(2)]
    states = [(200 * torch.randn(5, 8)).requires_grad_() for _ in range(2)]
    scores = [layer(state) for layer, state in zip(layers, states, strict=True)]
    assert float(scores[0].detach().abs().max()) > 200
    whole = F.kl_div(scores[0].log_softmax(-1), scores[1].log_softmax(-1), reduction="batchmean", log_target=True)
    wanted = torch.autograd.grad(whole, [states[0], *layers[0].parameters()])
    student, teacher = (tiles.Predictor(state, layer) for state, layer in zip(states, layers, strict=True))
    found = divergence(student, teacher)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-4)
    for one, other in zip(torch.autograd.grad(found, [states[0], *layers[0].parameters()]), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert float(divergence(teacher, teacher).detach()) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("loss", ["logits", "labels"])
def test_a_head_with_a_table_of_its_own_is_scored_by_tiles_too(loss: str) -> None:
    dense = tiny_model("llama-untied")
    teacher, compact = moved_apart(dense, hce.compress(dense, hce.ScalarConfig(bits=4), tables="all"))
    tiled, whole = (loss_and_gradients(teacher, compact, scores, loss) for scores in (False, True))
    assert_the_same(tiled, whole)
    assert any(name.startswith("lm_head.table.") for name in tiled[1])
