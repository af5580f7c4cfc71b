"""What an error in an embedding row costs: how far it moves what the model gives over texts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..model_outputs import is_masked_lm, mean_pooled
from ..modeling.architectures import InputTable, find_input_table
from ..modeling.errors import CompactConfigError
from ..progress import steps
from .states import base_encoder
from .texts import Text, text_batches

# A few hundred texts fix a matrix of this size well enough: it is smoothed before it is used.
# The gradients of a text's tokens are much alike: few of them do.
_TEXTS = 512
_TEXTS_PER_BATCH = 16
_MAX_LENGTH = 32
_MAX_SCORED_LENGTH = 128
# Random directions of the output for each text: one alone leaves a metric that is too noisy for the smallest budgets.
_DIRECTIONS = 3
# Of the ordinary tokens, where a model predicts what is behind a mask.
_MASKED_EVERY = 7


def sensitivity_metric(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, seed: int = 0
) -> Tensor:
    """Return what errors cost, as a positive semi-definite matrix (D, D), float64.

    Where a head scores through the table, most of the harm is done there: the matrix then counts what moves the
    scores, else what moves the states that the encoder makes of the rows.
    """
    table = find_input_table(model)
    training = model.training
    model.eval()
    try:
        heads = tied_heads(model, table)
        if heads:
            return _of_scores(texts, tokenizer, model, heads)
        return _of_states(texts, tokenizer, model, seed)
    finally:
        model.train(training)


def tied_heads(model: PreTrainedModel, table: InputTable) -> list[nn.Linear]:
    """Return the output layers that score through the table."""
    layers = [model.get_submodule(path) for path in table.tied_paths]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _of_scores(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, heads: Sequence[nn.Module]
) -> Tensor:
    """Return the sum of plain distance and the cost of scores (D, D), with the same trace.

    A score moves by the product of an error and what enters the head, whatever the error's size, so the cost is the
    mean outer product of what enters where the model predicts. Plain distance stands for the rows as inputs, with the
    same say: without it the states suffer, and the scores gain nothing.
    """
    masked = is_masked_lm(model) and tokenizer.mask_token_id is not None
    special = torch.tensor(tokenizer.all_special_ids)

    def states(batch: list[str]) -> Tensor:
        encoded = tokenizer(
            batch, truncation=True, max_length=_MAX_SCORED_LENGTH, padding=True, return_tensors="pt", verbose=False
        )
        ids, positions = encoded["input_ids"], encoded["attention_mask"].bool()
        if masked:
            positions &= ~torch.isin(ids, special)
            positions &= (positions.flatten().cumsum(0) % _MASKED_EVERY == 1).view_as(positions)
            ids = ids.masked_fill(positions, tokenizer.mask_token_id)
        inputs = {"input_ids": ids, "attention_mask": encoded["attention_mask"]}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        with _entering(heads) as entered:
            model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        return torch.cat([hidden[positions.to(hidden.device)] for hidden in entered])

    scores = _mean_outer_product(states(batch) for batch in _batches(texts))
    return scores / scores.diagonal().mean() + torch.eye(len(scores), dtype=scores.dtype)


@contextlib.contextmanager
def _entering(heads: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what enters output layers (B, T, D), and let them score one position: all would fill the memory."""
    entered: list[Tensor] = []

    def keep(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered.append(arguments[0])
        return (arguments[0][:1, :1], *arguments[1:])

    handles = [head.register_forward_pre_hook(keep) for head in heads]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _of_states(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, seed: int) -> Tensor:
    """Return the square root (D, D) of the mean outer product of the output's gradients for embedded tokens.

    The output is the direction of the mean last hidden state. Its gradients along random directions stand for the
    whole Jacobian, so errors along the large axes of the result are those that the output shows. Of the product itself
    a fit would leave out too much: errors are not as small as gradients assume.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder, table = base_encoder(model), model.get_input_embeddings()

    def gradients(batch: list[str]) -> Tensor:
        encoded = tokenizer(batch, truncation=True, max_length=_MAX_LENGTH, padding=True, return_tensors="pt")
        mask = encoded["attention_mask"].to(model.device)
        rows = table(encoded["input_ids"].to(model.device)).detach().requires_grad_(True)
        states = encoder(inputs_embeds=rows, attention_mask=mask).last_hidden_state
        output = normalize(mean_pooled(states, mask), dim=-1)
        found = []
        for left in reversed(range(_DIRECTIONS)):
            direction = torch.randn(output.shape, generator=generator).to(output)
            (gradient,) = torch.autograd.grad((output * direction).sum(), rows, retain_graph=left > 0)
            found.append(gradient[mask.bool()])
        return torch.cat(found)

    variances, axes = torch.linalg.eigh(_mean_outer_product(gradients(batch) for batch in _batches(texts)))
    return (axes * variances.clamp(min=0.0).sqrt()) @ axes.T


def _batches(texts: Iterable[Text]) -> Iterator[list[str]]:
    """Yield the first texts, some at a time; those of a length go together, so that little is padded."""
    first = next(text_batches(texts, "Reading texts", _TEXTS), [])
    first.sort(key=len)
    starts = range(0, len(first), _TEXTS_PER_BATCH)
    for start in steps(starts, "Reading batches"):
        yield first[start : start + _TEXTS_PER_BATCH]


def _mean_outer_product(parts: Iterable[Tensor]) -> Tensor:
    """Return the mean of vᵀv over vectors (n, D) that come in parts, float64."""
    total, count = torch.zeros(()).double(), 0
    for part in parts:
        vectors = part.double().cpu()
        total = total + vectors.T @ vectors
        count += len(vectors)
    if not count:
        raise CompactConfigError("`texts` gave no tokens: it is empty, or holds empty strings only.")
    return total / count
