"""Scores of a head that trains wait: their cross-entropy is made by tiles, and whoever reads them finds them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_compact_embeddings.kernels import lazy_scores, score_tiles
from hf_compact_embeddings.kernels.lazy_scores import LazyScores
from hf_compact_embeddings.modeling.tied import CompactHead

from ..cases import Case, build_structure, compress_tiny, first_cases, for_all, for_pairs
from ..tiny_models import tiny_inputs

ROWS, WIDTH = 60, 24


@pytest.fixture(autouse=True)
def _wait_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_scores, "_LEAST_SCORES", 1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LazyScores]]:
    """Gather the scores that were made after all."""
    found: list[LazyScores] = []
    make = LazyScores.scores
    monkeypatch.setattr(LazyScores, "scores", lambda self: (found.append(self), make(self))[1])
    yield found


def head_of(case: Case, dtype: torch.dtype = torch.float32) -> CompactHead:
    head = CompactHead(build_structure(case, private=(0, 7)), nn.Linear(WIDTH, ROWS)).train()
    with torch.no_grad():
        head.bias.normal_()
        # Scores that differ, so that their slopes do.
        for parameter in head.table.parameters():
            parameter.mul_(2.0)
    return head.to(dtype)


def gradients_of(head: nn.Module, states: Tensor, loss_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    head.zero_grad()
    states = states.detach().requires_grad_()
    loss = loss_of(head(states))
    loss.backward()
    return [loss.detach(), states.grad, *(value.grad for value in head.parameters() if value.requires_grad)]


def assert_alike(found: list[Tensor], wanted: list[Tensor]) -> None:
    most = max(float(each.abs().max()) for each in wanted[1:] if each is not None)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * most)


def models_loss(model: Any, inputs: dict, labels: Tensor) -> tuple[Any, list[Tensor]]:
    model.zero_grad()
    # The same is dropped out each time.
    torch.manual_seed(0)
    output = model(**inputs, labels=labels)
    output.loss.backward()
    return output, [output.loss.detach(), *(value.grad for value in model.parameters() if value.requires_grad)]


@for_pairs("project", "dense", architectures=("bert", "llama", "t5", "gemma3_text", "gpt2", "modernbert"))
def test_a_models_loss_is_the_same(
    architecture: str, case: Case, made: list[LazyScores], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, compact = compress_tiny(architecture, case)
    model = copy.deepcopy(compact).train()
    inputs = tiny_inputs(model)
    labels = inputs["input_ids"].clone()
    labels[:, ::2] = -100
    output, found = models_loss(model, inputs, labels)
    assert isinstance(output.logits, LazyScores) and not made
    monkeypatch.setattr(lazy_scores, "_LEAST_SCORES", 1 << 60)
    plain, wanted = models_loss(model, inputs, labels)
    assert type(plain.logits) is Tensor
    assert_alike(found, wanted)
    assert output.logits.shape == plain.logits.shape and output.logits.dtype == plain.logits.dtype
    assert torch.equal(output.logits.argmax(-1), plain.logits.argmax(-1)) and made


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("by_rows", [False, True])
@for_all("project", "dense")
def test_gradients_are_those_of_all_scores(
    case: Case, by_rows: bool, reduction: str, made: list[LazyScores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_tiles, "_SCORES_PER_TILE", 100)
    monkeypatch.setattr(score_tiles, "_SCORES_AT_ONCE", 2 * ROWS)
    monkeypatch.setattr(score_tiles, "_MOST_TOKEN_TILES", 0 if by_rows else 100)
    head, states = head_of(case), torch.randn(2, 4, WIDTH)
    labels = torch.tensor([3, -100, 0, 59, -100, 7, 7, 20])
    weights = torch.rand(8)

    def loss_of(scores: Tensor) -> Tensor:
        found = F.cross_entropy(scores.float().view(-1, ROWS), labels, reduction=reduction)
        return (found * weights).sum() if reduction == "none" else 3 * found

    found = gradients_of(head, states, loss_of)
    assert not made
    monkeypatch.setattr(lazy_scores, "_LEAST_SCORES", 1 << 60)
    assert_alike(found, gradients_of(head, states, loss_of))


@for_all("project", "dense")
def test_gradcheck(case: Case) -> None:
    head = head_of(case, torch.float64)
    labels = torch.tensor([3, 0, -100, 59])
    trained = [value for value in head.parameters() if value.requires_grad]

    def loss(states: Tensor, *_: Tensor) -> Tensor:
        return F.cross_entropy(head(states), labels)

    states = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    # The parameters are the head's own, which is what moves them.
    assert torch.autograd.gradcheck(loss, (states, *trained), fast_mode=True)


USES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.square().sum(),
    "softmax": lambda scores: F.softmax(scores, -1)[..., 3].sum(),
    "in place": lambda scores: scores.mul_(0.5).logsumexp(-1).sum(),
    "smoothed": lambda scores: F.cross_entropy(scores.view(-1, ROWS), torch.arange(6), label_smoothing=0.1),
    "weighted": lambda scores: F.cross_entropy(scores.view(-1, ROWS), torch.arange(6), torch.rand(ROWS)),
    "columns": lambda scores: scores[..., 3:7].square().sum() + scores.view(ROWS, 6)[5].sum(),
    "transposed": lambda scores: F.cross_entropy(scores.transpose(1, 2), torch.arange(6).view(2, 3)),
    "shifted": lambda scores: F.cross_entropy(scores[..., :-1, :].contiguous().view(-1, ROWS), torch.arange(4)),
    "one row": lambda scores: F.cross_entropy(scores[:, 1], torch.arange(2)) + scores[0, 1, 5],
    "capped": lambda scores: F.cross_entropy((torch.tanh(scores / 3) * 3).flatten(0, 1), torch.arange(6)),
    "rows": lambda scores: F.cross_entropy(scores.reshape(6, ROWS).to(torch.float64), torch.arange(6)),
}


@pytest.mark.parametrize("use", USES)
def test_whatever_reads_them_finds_them(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, states = head_of(first_cases("project", "dense")[0]), torch.randn(2, 3, WIDTH)

    def loss_of(scores: Tensor) -> Tensor:
        torch.manual_seed(0)
        return USES[use](scores)

    found = gradients_of(head, states, loss_of)
    monkeypatch.setattr(lazy_scores, "_LEAST_SCORES", 1 << 60)
    assert_alike(found, gradients_of(head, states, loss_of))


def test_a_label_without_a_row_is_refused() -> None:
    head = head_of(first_cases("project", "dense")[0])
    for wrong in (ROWS, -1):
        with pytest.raises(IndexError):
            F.cross_entropy(head(torch.randn(2, WIDTH)), torch.tensor([3, wrong]))
    assert F.cross_entropy(head(torch.randn(2, WIDTH)), torch.tensor([-100, -100])).isnan()


def test_only_heads_that_train_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    head, states = head_of(first_cases("project", "dense")[0]), torch.randn(2, WIDTH)
    assert isinstance(head(states), LazyScores)
    with torch.no_grad():
        assert type(head(states)) is Tensor
    assert type(head.eval()(states)) is Tensor
    head.train().requires_grad_(False)
    assert type(head(states)) is Tensor and isinstance(head(states.requires_grad_()), LazyScores)
    monkeypatch.setattr(lazy_scores, "_LEAST_SCORES", 2 * ROWS + 1)
    assert type(head(states)) is Tensor


def test_scores_that_are_read_too_late_say_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hf_compact_embeddings"), "propagate", True)
    head = head_of(first_cases("project", "dense")[0])
    scores = head(torch.randn(2, WIDTH))
    with torch.no_grad():
        head.bias.add_(1.0)
    scores.sum()
    assert "after its table has changed" in caplog.text
