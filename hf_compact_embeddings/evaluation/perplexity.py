"""Perplexity on running text: masked for models with a masked-LM head, next-token for causal ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError
from .places import scored_at

_PIECE_LENGTH = 128
_PIECES_PER_BATCH = 32
_PREDICTED_SHARE = 0.15
# Of the predicted tokens, as BERT was trained: most are masked, some replaced by any token, and the rest left.
_MASKED_SHARE, _REPLACED_SHARE = 0.8, 0.1
_TEXTS_PER_BATCH = 1000


def text_pieces(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int = _PIECE_LENGTH) -> Tensor:
    """Return a text as pieces of equal length (N, length), special tokens at both ends where the tokenizer has them.

    Lines are joined, as language models are trained; the rest that does not fill a piece is dropped.
    """
    return torch.tensor(list(stream_pieces(texts, tokenizer, length)))


def stream_pieces(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int = _PIECE_LENGTH
) -> Iterator[list[int]]:
    """Yield the pieces of a text one by one, without holding it; raise if it does not fill a single one."""
    prefix, suffix = _special_ends(tokenizer)
    body = length - len(prefix) - len(suffix)
    if body < 1:
        raise CompactConfigError(f"A piece of {length} tokens has no room beside the tokenizer's special ones.")
    left: list[int] = []
    empty = True
    for batch in _batches(texts):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            left.extend(ids)
        whole = len(left) // body * body
        for start in range(0, whole, body):
            empty = False
            yield [*prefix, *left[start : start + body], *suffix]
        left = left[whole:]
    if empty:
        raise CompactConfigError(f"The text has {len(left)} tokens, but a piece needs {body}: give more text.")


def _special_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = list(tokenizer("a")["input_ids"])
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == list(plain)), 0)
    return full[:start], full[start + len(plain) :]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        if text.strip():
            batch.append(text)
        if len(batch) == _TEXTS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    seed: int = 0,
    max_length: int | None = None,
) -> float:
    """Return exp of the mean loss of the tokens that are predicted.

    A masked model predicts 15 % of the tokens, four fifths of them behind a mask, as `DataCollatorForLanguageModeling`
    prepares them, so that the figure compares with those of masked-LM training.

    Args:
        model: with a masked-LM or a causal head.
        tokenizer: the model's tokenizer. Masked models need its mask token.
        texts: running text, a line each.
        seed: of the choice of masked tokens, so that models are compared on the same ones.
        max_length: of the pieces that the text is cut into, in tokens.
    """
    if model.config.is_encoder_decoder:
        raise CompactConfigError(
            f"A {type(model).__name__} predicts from another text than it reads, so that running text gives it no "
            "perplexity."
        )
    pieces = text_pieces(texts, tokenizer, min(max_length or _PIECE_LENGTH, tokenizer.model_max_length))
    masked = "ForMaskedLM" in type(model).__name__
    if masked and tokenizer.mask_token_id is None:
        raise CompactConfigError("`tokenizer` has no mask token, which masked-LM perplexity needs.")
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(tokenizer.all_special_ids)
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in pieces.split(_PIECES_PER_BATCH):
        if masked:
            chosen = torch.rand(batch.shape, generator=generator) < _PREDICTED_SHARE
            chosen &= ~torch.isin(batch, special)
            inputs, targets = _corrupted(batch, chosen, tokenizer, generator), batch[chosen]
            with scored_at(model, chosen.to(model.device)):
                logits = model(input_ids=inputs.to(model.device)).logits
        else:
            logits = model(input_ids=batch.to(model.device)).logits[:, :-1].flatten(0, 1)
            targets = batch[:, 1:].flatten()
        total += float(cross_entropy(logits.float(), targets.to(logits.device), reduction="sum"))
        count += len(targets)
    model.train(training)
    return math.exp(total / count)


def _corrupted(
    pieces: Tensor, chosen: Tensor, tokenizer: PreTrainedTokenizerBase, generator: torch.Generator
) -> Tensor:
    """Return pieces (B, T) with the chosen tokens hidden, most of them behind the mask."""
    assert isinstance(tokenizer.mask_token_id, int)
    lot = torch.rand(pieces.shape, generator=generator)
    others = torch.randint(len(tokenizer), pieces.shape, generator=generator)
    masked = chosen & (lot < _MASKED_SHARE)
    replaced = chosen & ~masked & (lot < _MASKED_SHARE + _REPLACED_SHARE)
    return torch.where(replaced, others, pieces.masked_fill(masked, tokenizer.mask_token_id))
