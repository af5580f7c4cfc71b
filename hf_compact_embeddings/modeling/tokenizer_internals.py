"""What the tokenizer without a vocabulary uses of Transformers' private parts, with the versions seen."""

from __future__ import annotations

from transformers import AddedToken, PreTrainedTokenizer


def set_built_in_tokens(tokenizer: PreTrainedTokenizer, tokens: dict[int, AddedToken]) -> None:
    """Give a tokenizer the tokens that it always has, before its `__init__` adds others behind them."""
    tokenizer._added_tokens_decoder = tokens  # 5.11, 5.24


def warn_of_length(tokenizer: PreTrainedTokenizer, ids: list[int], max_length: int | None, verbose: bool) -> None:
    """Warn, once, of a row that is longer than the model takes."""
    tokenizer._eventual_warn_about_too_long_sequence(ids, max_length, verbose)  # 5.11, 5.24
