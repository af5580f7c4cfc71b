"""What an error in a row costs where a head scores through the table: how far it moves what the model predicts.

A row of a tied table errs twice: the model reads it, and the head scores it. To second order both move the
predictions, in nats for each predicted token (half the Fisher information times the squared error), by

- δᵀ N δ for each time that the row is read: N is the mean outer product of the gradients of the loss for embedded
  tokens, where the tokens to predict are drawn from the model's own predictions;
- δᵀ C δ for the row's share in the doubt, Σ p (1 − p) over predictions p of its token: C is the covariance of what
  enters the head, where predictions weigh by their doubt, Σ p (1 − p) over all tokens.

So one metric, N + C, serves both sides in one unit, and a row weighs by how often it is read, and by its doubt. For the
table of a head that is not tied the metric is C alone: the model does not read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import BatchEncoding

from ..fitting.reproducible import product_over_rows
from ..model_outputs import is_masked_lm
from ..modeling.architectures import embedding_scale
from ..progress import steps
from .tables import Table
from .texts import Text, no_tokens, some_texts

_TEXTS_PER_BATCH = 16
_MAX_LENGTH = 128
# Tokens to read. Of a masked model's only a part is predicted.
_TOKENS, _TOKENS_OF_MASKED = 8_192, 16_384
# Of the ordinary tokens, where a model predicts what is behind a mask.
_MASKED_EVERY = 7
# Scores that are held at a time.
_SCORES = 1 << 26
# An error along what all states have in common adds the same to a token's score wherever it stands. Others that err
# alike take most of it back: taken in full it would draw most bits to one direction.
_SHARE_OF_COMMON = 0.1
# Of the mean, in directions that matter to nothing that was read.
_SHRINKAGE = 0.01
# Of what enters the head, kept of each batch of texts.
_STATES_PER_BATCH = 64
_TOKENS_TO_SPREAD = 8192


@dataclasses.dataclass
class _Sums:
    """What a pass over texts adds up, over all predicted positions."""

    reading: Tensor
    entering: Tensor
    common: Tensor
    doubts: Tensor
    states: list[Tensor] = dataclasses.field(default_factory=list)
    positions: int = 0
    logit_scale: float = 0.0

    def metric(self) -> Tensor:
        """Return N + C, smoothed (D, D); N is zero where no row is read."""
        shared = torch.outer(self.common, self.common) / self.doubts.sum().clamp(min=1e-30)
        spread = (self.entering - (1 - _SHARE_OF_COMMON) * shared) / self.positions
        metric = self.reading / self.positions + self.logit_scale**2 * spread
        return metric + _SHRINKAGE * metric.diagonal().mean() * torch.eye(len(metric), dtype=metric.dtype)


def sensitivity_of_scores(
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    table: Table,
    heads: Sequence[nn.Linear],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what errors cost (D, D), how much doubt there is of each token (V,), and states, scaled to give logits."""
    rows, width = table.module.weight.shape
    zeros = torch.zeros(width, width, dtype=torch.float64)
    sums = _Sums(zeros, zeros.clone(), zeros[0].clone(), torch.zeros(rows, dtype=torch.float64))
    masked = is_masked_lm(model) and tokenizer.mask_token_id is not None
    generator = torch.Generator().manual_seed(seed)
    inputs = _input_modules(model, table)
    for encoded in steps(_encoded(texts, tokenizer, masked), "Reading batches"):
        _add(sums, encoded, tokenizer if masked else None, model, inputs, heads, generator)
    if not sums.positions:
        raise no_tokens()
    return sums.metric(), sums.doubts, sums.logit_scale * torch.cat(sums.states)


def _encoded(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, masked: bool) -> list[BatchEncoding]:
    """Return batches of some texts; those of a length go together, so that little is padded."""
    chosen, left = [], _TOKENS_OF_MASKED if masked else _TOKENS
    for text in some_texts(texts):
        chosen.append(text)
        left -= len(tokenizer(text, truncation=True, max_length=_MAX_LENGTH, verbose=False)["input_ids"])
        if left <= 0:
            break
    chosen.sort(key=len)
    return [
        tokenizer(
            chosen[start : start + _TEXTS_PER_BATCH],
            truncation=True,
            max_length=_MAX_LENGTH,
            padding=True,
            return_tensors="pt",
            verbose=False,
        )
        for start in range(0, len(chosen), _TEXTS_PER_BATCH)
    ]


def _add(
    sums: _Sums,
    encoded: BatchEncoding,
    masking: PreTrainedTokenizerBase | None,
    model: PreTrainedModel,
    inputs: Sequence[nn.Module],
    heads: Sequence[nn.Linear],
    generator: torch.Generator,
) -> None:
    """Let a model predict, behind masks where it does, and add up what that shows."""
    ids, positions = encoded["input_ids"], encoded["attention_mask"].bool()
    if masking is not None:
        positions &= ~torch.isin(ids, torch.tensor(masking.all_special_ids))
        positions &= (positions.flatten().cumsum(0) % _MASKED_EVERY == 1).view_as(positions)
        ids = ids.masked_fill(positions, masking.mask_token_id)
    every = -(-int(positions.sum()) * len(sums.doubts) // _SCORES)
    if every > 1:
        positions &= (positions.flatten().cumsum(0) % every == 1).view_as(positions)
    if not positions.any():
        return
    given = {"input_ids": ids, "attention_mask": encoded["attention_mask"]}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    with torch.set_grad_enabled(bool(inputs)), _rows_apart(inputs) as read, _scoring_at(heads, positions) as scored:
        output = model(**{name: tensor.to(model.device) for name, tensor in given.items()})
    found, losses = [], []
    for _, entering, scores in scored:
        logits = scores if len(scored) > 1 or getattr(output, "logits", None) is None else output.logits
        logits = logits[0]
        predicted = logits.detach().float().softmax(-1)
        drawn = torch.multinomial(predicted.cpu(), 1, generator=generator).to(logits.device)
        losses.append(-logits.float().log_softmax(-1).gather(1, drawn).sum())
        doubts = predicted * (1 - predicted)
        # Summed for each prediction and for each token: the doubts themselves are as many as scores.
        of_predictions, of_tokens = (doubts.sum(way, dtype=torch.float64).cpu() for way in (1, 0))
        found.append((entering.detach()[0].double().cpu(), of_predictions, of_tokens))
        sums.logit_scale = sums.logit_scale or _spread(logits) / max(_spread(scores[0]), 1e-30)
    if read:
        _add_reading(sums, torch.stack(losses).sum(), read, scored)
    for entering, of_predictions, of_tokens in found:
        sums.entering += product_over_rows(entering, entering * of_predictions[:, None])
        sums.common += product_over_rows(of_predictions, entering)
        sums.doubts[: len(of_tokens)] += of_tokens[: len(sums.doubts)]
        sums.positions += len(entering)
        sums.states.append(entering[:: -(-len(entering) // _STATES_PER_BATCH)].float())


def _add_reading(
    sums: _Sums, loss: Tensor, read: list[tuple[Tensor, float]], scored: list[tuple[nn.Linear, Tensor, Tensor]]
) -> None:
    """Add up what errors cost in rows that were read."""
    rows = [row for row, _ in read]
    # Through the head by hand: its sums over all tokens would depend on the number of threads.
    of_scores = torch.autograd.grad(loss, [scores for _, _, scores in scored])
    of_states = [
        product_over_rows(gradient[0].T, head.weight.detach())[None]
        for gradient, (head, _, _) in zip(of_scores, scored, strict=True)
    ]
    entered = [entering for _, entering, _ in scored]
    gradients = torch.autograd.grad(entered, rows, grad_outputs=of_states, allow_unused=True)
    for gradient, (_, scale) in zip(gradients, read, strict=True):
        if gradient is not None:
            vectors = gradient.flatten(0, -2).double().cpu() * scale
            sums.reading += product_over_rows(vectors, vectors)


def _spread(scores: Tensor) -> float:
    """Return how far scores (n, V) of a prediction lie apart; of so few tokens that any number of threads agree."""
    return float(scores[:, :_TOKENS_TO_SPREAD].detach().float().std(1, correction=0).mean())


def _input_modules(model: PreTrainedModel, table: Table) -> list[nn.Module]:
    """Return the modules that look rows of the table up, each once."""
    modules = [model.get_submodule(path) for path in (*table.paths, *table.tied_paths)]
    return list({id(module): module for module in modules if not isinstance(module, nn.Linear)}.values())


@contextlib.contextmanager
def _rows_apart(inputs: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, float]]]:
    """Collect the rows (B, T, D) that modules look up, as leaves of the graph, each with its scale."""
    read: list[tuple[Tensor, float]] = []

    def keep(module: nn.Module, _: object, rows: Tensor) -> Tensor:
        leaf = rows.detach().requires_grad_(True)
        read.append((leaf, embedding_scale(module)))  # type: ignore[arg-type]
        return leaf

    handles = [module.register_forward_hook(keep) for module in inputs]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _scoring_at(heads: Sequence[nn.Linear], positions: Tensor) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Let output layers score some positions (B, T) only; collects each, what enters (1, n, D) and scores (1, n, V)."""
    scored: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def choose(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # As one text, so that what a model does with its scores still fits.
        return (arguments[0][positions.to(arguments[0].device)][None], *arguments[1:])

    def keep(head: nn.Linear, arguments: tuple[Tensor, ...], scores: Tensor) -> None:
        scored.append((head, arguments[0], scores))

    handles = [head.register_forward_pre_hook(choose) for head in heads]
    handles += [head.register_forward_hook(keep) for head in heads]
    try:
        yield scored
    finally:
        for handle in handles:
            handle.remove()
