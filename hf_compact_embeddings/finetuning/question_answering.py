"""Extractive question answering in the layout of SQuAD 1.1: windows of a context, and the answer in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..modeling.errors import CompactConfigError
from .data import Rows, require_columns
from .metrics import squad_metrics

_COLUMNS = ("id", "context", "question")
# First and last tokens that are tried with each other, the best scored ones.
_BEST = 20


class QuestionAnsweringTask:
    """Cuts contexts into windows that overlap, marks answers in them, and reads answers from scores."""

    metrics = ("f1", "exact_match")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 384,
        stride: int = 128,
        longest_answer: int = 30,
    ) -> None:
        """Note how contexts are cut.

        Args:
            tokenizer: must be a fast one, which knows where in the text a token is.
            max_length: of question and window together.
            stride: tokens that two windows share.
            longest_answer: in tokens.
        """
        if not tokenizer.is_fast:
            raise CompactConfigError("`tokenizer` is not a fast one: it cannot tell where in the context a token is.")
        # Positions of tokens, of answers and in scores, count from the start of a row: padding comes after it.
        self.tokenizer = copy.copy(tokenizer)
        self.tokenizer.padding_side = "right"
        self.max_length = max_length
        self.stride = stride
        self.longest_answer = longest_answer

    def windows(self, rows: Rows, with_answers: bool) -> list[dict[str, Any]]:
        """Return the windows of rows as inputs of a model; `row` and `offsets` say where each comes from.

        Args:
            rows: with the columns id, context and question, and answers where their positions are marked.
            with_answers: mark the position of the first answer, as training needs.
        """
        require_columns(rows, (*_COLUMNS, "answers") if with_answers else _COLUMNS)
        encoded = self.tokenizer(
            [row["question"].lstrip() for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        spans = encoded.pop("offset_mapping")
        found = []
        for index, owner in enumerate(owners):
            window: dict[str, Any] = {name: values[index] for name, values in encoded.items()}
            inside = [part == 1 for part in encoded.sequence_ids(index)]
            if with_answers:
                start, end = self._answer_positions(rows[owner], spans[index], inside)
                window |= {"start_positions": start, "end_positions": end}
            else:
                offsets = [span if kept else None for span, kept in zip(spans[index], inside, strict=True)]
                window |= {"row": owner, "offsets": offsets}
            found.append(window)
        return found

    @staticmethod
    def _answer_positions(
        row: Mapping[str, Any], spans: Sequence[tuple[int, int]], inside: Sequence[bool]
    ) -> tuple[int, int]:
        """Return the first and last token of the first answer, or zeros if it is not whole in the window."""
        answers = row["answers"]
        if not answers["text"]:
            return 0, 0
        start = answers["answer_start"][0]
        end = start + len(answers["text"][0])
        covered = [
            position
            for position, ((first, last), kept) in enumerate(zip(spans, inside, strict=True))
            if kept and first < end and last > start
        ]
        if not covered or spans[covered[0]][0] > start or spans[covered[-1]][1] < end:
            return 0, 0
        return covered[0], covered[-1]

    def answers(
        self, rows: Rows, windows: Sequence[Mapping[str, Any]], starts: np.ndarray, ends: np.ndarray
    ) -> dict[str, str]:
        """Return the best answer for each question's id, from scores (windows, T) of its first and last token."""
        best = {str(row["id"]): (-np.inf, "") for row in rows}
        for window, start_scores, end_scores in zip(windows, starts, ends, strict=True):
            row = rows[window["row"]]
            score, text = self._best_in(window["offsets"], start_scores, end_scores, row["context"])
            if score > best[str(row["id"])][0]:
                best[str(row["id"])] = (score, text)
        return {key: text for key, (_, text) in best.items()}

    def _best_in(
        self, offsets: Sequence[tuple[int, int] | None], starts: np.ndarray, ends: np.ndarray, context: str
    ) -> tuple[float, str]:
        length = len(offsets)
        found = (-np.inf, "")
        for first in np.argsort(starts[:length])[::-1][:_BEST]:
            for last in np.argsort(ends[:length])[::-1][:_BEST]:
                begin, end = offsets[first], offsets[last]
                if begin is None or end is None or not first <= last < first + self.longest_answer:
                    continue
                score = float(starts[first] + ends[last])
                if score > found[0]:
                    found = (score, context[begin[0] : end[1]])
        return found

    @staticmethod
    def measure(rows: Rows, answers: Mapping[str, str]) -> dict[str, float]:
        """Return exact_match and f1 in per cent of the answers to each question's id."""
        require_columns(rows, (*_COLUMNS, "answers"))
        references = {str(row["id"]): list(row["answers"]["text"]) or [""] for row in rows}
        return squad_metrics(answers, references)
