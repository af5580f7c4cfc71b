"""Which rows of a table are kept exactly beside the codes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .modeling.architectures import InputTable
from .modeling.errors import CompactConfigError
from .modeling.options import StructureConfig


def always_exact(table: InputTable, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Return the ids that are kept in any case: the padding row, and the special tokens of a tokenizer."""
    special = [] if tokenizer is None else [i for i in tokenizer.all_special_ids if i < table.module.num_embeddings]
    padding = table.module.padding_idx
    return list(dict.fromkeys(([] if padding is None else [padding]) + special))


def exact_rows(
    config: StructureConfig,
    table: InputTable,
    tokenizer: PreTrainedTokenizerBase | None,
    counts: Tensor | None,
) -> Tensor:
    """Return the sorted ids of the rows to keep: those always kept, then the most frequent up to `private_rows`."""
    rows = table.module.num_embeddings
    if config.private_rows > rows:
        raise CompactConfigError(f"`private_rows` is {config.private_rows}, but the table has {rows:,} rows.")
    if config.init == "random":
        return torch.empty(0, dtype=torch.int64)
    kept = always_exact(table, tokenizer)
    missing = config.private_rows - len(kept)
    if missing > 0:
        if counts is None:
            raise CompactConfigError(
                f"`private_rows` is {config.private_rows}: to choose the most frequent tokens, give "
                "`token_counts`, or `texts` and a `tokenizer`."
            )
        order = counts.argsort(descending=True, stable=True)
        kept += order[~torch.isin(order, torch.tensor(kept, dtype=order.dtype))][:missing].tolist()
    return torch.tensor(sorted(kept), dtype=torch.int64)
