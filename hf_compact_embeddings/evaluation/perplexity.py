"""Perplexity on running text: masked for models with a masked-LM head, next-token for causal ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..finetuning.data import stream_pieces
from ..model_outputs import is_masked_lm, scored_at
from ..modeling.errors import CompactConfigError

_PIECE_LENGTH = 128
_PIECES_PER_BATCH = 32
_PREDICTED_SHARE = 0.15
# Of the predicted tokens, as BERT was trained: most are masked, some replaced by any token, and the rest left.
_MASKED_SHARE, _REPLACED_SHARE = 0.8, 0.1


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
    length = min(max_length or _PIECE_LENGTH, tokenizer.model_max_length)
    pieces = torch.tensor(list(stream_pieces(texts, tokenizer, length)))
    masked = is_masked_lm(model)
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
