"""The losses are zero for a perfect copy, finite otherwise, and ask for what they need."""

from __future__ import annotations

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.training.losses import (
    Outputs,
    Target,
    choose_losses,
    logits_loss,
    predicts,
    relations_loss,
    run,
    sentence_loss,
    states_loss,
    target_of,
    total_loss,
)

from ..cases import compress_tiny, first_cases
from ..tiny_models import tiny_inputs, tiny_model

CASE = first_cases("project", "dense")[0]
ALL = {"all_states": 1.0, "sentence": 1.0, "relations": 1.0, "logits": 1.0}


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "gemma3_text", "t5", "electra"])
def test_a_perfect_copy_has_no_loss_and_a_compact_one_has(architecture: str) -> None:
    teacher = tiny_model(architecture)
    _, compact = compress_tiny(architecture, CASE)
    inputs = tiny_inputs(teacher)
    inputs.pop("decoder_input_ids", None)
    mask = inputs["attention_mask"]
    positions = torch.zeros_like(mask, dtype=torch.bool)
    positions[0, 2] = positions[1, 1] = positions[1, 4] = True
    losses = ALL if architecture != "t5" else {name: 1.0 for name in ALL if name != "logits"}
    shown = positions if predicts(losses) else None
    with torch.no_grad():
        said = run(teacher, teacher, inputs, shown)
        target = target_of(said, mask, losses)
        loss, parts = total_loss(said, target, mask, None, losses)
        worse, worse_parts = total_loss(run(compact, compact, inputs, shown), target, mask, None, losses)
    assert abs(float(loss)) < 1e-5 and set(parts) == set(losses)
    assert all(1e-6 < float(part) < 100 for part in worse_parts.values()), worse_parts
    assert float(worse) == pytest.approx(sum(map(float, worse_parts.values())))
    if shown is not None:
        whole = teacher(**inputs).logits
        torch.testing.assert_close(said.logits, whole[positions], atol=1e-5, rtol=1e-5)


def test_padding_has_no_part_in_any_loss() -> None:
    states = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    changed = states + (1 - mask).unsqueeze(-1) * 100
    assert float(states_loss(changed, states, mask)) == 0.0
    assert float(states_loss(changed, states, torch.ones_like(mask))) > 1


def test_the_states_loss_is_one_where_nothing_is_left() -> None:
    states, mask = torch.randn(2, 5, 8), torch.ones(2, 5)
    assert float(states_loss(torch.zeros_like(states), states, mask)) == pytest.approx(1.0)


def test_relations_do_not_see_a_rotation_but_sentences_do() -> None:
    vectors = torch.randn(6, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    assert float(relations_loss(vectors @ rotation, vectors)) < 1e-6
    assert float(sentence_loss(vectors @ rotation, vectors)) > 0.1
    assert float(relations_loss(torch.randn(6, 8), vectors)) > 0.1
    assert float(relations_loss(vectors[:1], vectors[:1])) == 0.0


def test_the_best_tokens_stand_for_the_whole_distribution() -> None:
    teacher, student = 3 * torch.randn(4, 50), 3 * torch.randn(4, 50)
    student, same = (Outputs((), scores) for scores in (student, teacher))
    whole = float(logits_loss(student, Target(logits=teacher)))
    bounds = []
    for count in (2, 10, 49):
        best = teacher.log_softmax(-1).topk(count)
        kept = Target(best_ids=best.indices, best_scores=best.values)
        assert abs(float(logits_loss(same, kept))) < 1e-5
        bounds.append(float(logits_loss(student, kept)))
    assert bounds == sorted(bounds) and bounds[-1] == pytest.approx(whole, rel=1e-3)


def test_the_losses_that_suit_a_model() -> None:
    _, masked = compress_tiny("bert", CASE)
    _, encoder = compress_tiny("bert", CASE, head="BertModel")
    assert choose_losses(masked, True, None) == {"logits": 1.0, "states": 1.0}
    assert choose_losses(masked, False, None) == {"labels": 1.0}
    assert choose_losses(encoder, True, None) == {"all_states": 2.0, "sentence": 1.0, "relations": 1.0}
    final = choose_losses(encoder, True, None, final_states_only=True)
    assert final == {"states": 1.0, "sentence": 1.0, "relations": 1.0}
    _, causal = compress_tiny("llama", CASE)
    assert choose_losses(causal, True, None) == {"logits": 1.0}


@pytest.mark.parametrize(
    ("teacher", "losses", "message"),
    [
        (True, {"state": 1.0}, "'state', but allowed are states, all_states"),
        (True, {}, "names no loss"),
        (True, {"states": 0.0}, "a number above 0"),
        (False, None, "`teacher` is missing: a CompactBertModel has no"),
        (False, {"states": 1.0}, "`teacher` is missing, but the losses states"),
        (True, {"logits": 1.0}, "CompactBertModel has no masked-LM or causal head"),
        (True, {"states": 1.0, "all_states": 1.0}, "both states and all_states"),
    ],
)
def test_losses_that_cannot_be(teacher: bool, losses: dict | None, message: str) -> None:
    _, encoder = compress_tiny("bert", CASE, head="BertModel")
    with pytest.raises(hce.CompactConfigError, match=message):
        choose_losses(encoder, teacher, losses)
