"""Which rows of a table are kept exactly beside the codes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError
from .tables import Table, padding_of


def always_exact(table: Table, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Return the ids that are kept in any case: the padding row, and the special tokens of a tokenizer."""
    special = [] if tokenizer is None else [i for i in tokenizer.all_special_ids if i < len(table.module.weight)]
    padding = padding_of(table)
    return list(dict.fromkeys(([] if padding is None else [padding]) + special))


def exact_rows(
    table: Table, tokenizer: PreTrainedTokenizerBase | None, counts: Tensor | None, private_rows: int = 0
) -> Tensor:
    """Return the sorted ids of the rows to keep: those always kept, then the most frequent up to `private_rows`."""
    rows = len(table.module.weight)
    if private_rows > rows:
        raise CompactConfigError(f"`private_rows` is {private_rows}, but the table has {rows:,} rows.")
    kept = always_exact(table, tokenizer)
    missing = private_rows - len(kept)
    if missing > 0:
        if counts is None:
            raise CompactConfigError(
                f"`private_rows` is {private_rows}: to choose the most frequent tokens, give "
                "`token_counts`, or `texts` and a `tokenizer`."
            )
        order = counts.argsort(descending=True, stable=True)
        kept += order[~torch.isin(order, torch.tensor(kept, dtype=order.dtype))][:missing].tolist()
    return torch.tensor(sorted(kept), dtype=torch.int64)
