"""From texts to batches: tokens, the positions where some are predicted, and a teacher's outputs for them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..evidence.texts import Text
from ..finetuning.data import stream_pieces
from ..modeling.errors import CompactConfigError
from .losses import Target

_TEXTS_PER_BATCH = 1000
Row = dict[str, Any]


class Encoder:
    """Turns texts into rows of ids, some of which are to be predicted.

    A row's predicted positions depend on its own tokens and the seed alone: not on the order, the number of processes
    or the epoch, so that training can resume and a teacher's outputs can be kept.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        predict: str | None,
        share: float,
        seed: int,
    ) -> None:
        """Note how texts are read.

        Args:
            tokenizer: of teacher and student.
            max_length: of a row in tokens. Longer texts are cut off; where tokens are predicted, texts are joined
                and cut into rows of exactly this length.
            predict: "masked", "next", or None.
            share: of the tokens that are predicted.
            seed: of the choice of these.
        """
        if predict == "masked" and tokenizer.mask_token_id is None:
            raise CompactConfigError("`tokenizer` has no mask token, which the losses of a masked-LM head need.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.predict = predict
        self.share = share
        self.seed = seed
        self.special = torch.tensor(tokenizer.all_special_ids, dtype=torch.int64)

    def rows(self, texts: Iterable[Text]) -> Iterator[Row]:
        """Read texts as rows."""
        if self.predict is not None:
            pieces = stream_pieces(map(_single, texts), self.tokenizer, self.max_length)
            yield from (self._with_positions(torch.tensor(piece)) for piece in pieces)
            return
        iterator = iter(texts)
        while batch := list(islice(iterator, _TEXTS_PER_BATCH)):
            for row in self._encoded(batch):
                ids = row["input_ids"] = torch.tensor(row["input_ids"], dtype=torch.int64)
                # A text of which the tokenizer leaves nothing teaches nothing.
                if bool((~torch.isin(ids, self.special)).any()):
                    yield row

    def _encoded(self, batch: list[Text]) -> list[Row]:
        """Return what the tokenizer makes of texts and pairs, which it takes apart from each other, in their order."""
        rows: list[Row] = [{} for _ in batch]
        for paired in (False, True):
            indices = [index for index, text in enumerate(batch) if isinstance(text, tuple) == paired]
            chosen = [batch[index] for index in indices]
            if not chosen:
                continue
            encoded = self.tokenizer(
                *(map(list, zip(*chosen, strict=True)) if paired else (chosen,)),
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
                verbose=False,
            )
            for number, index in enumerate(indices):
                rows[index] = {name: values[number] for name, values in encoded.items()}
        return rows

    def _with_positions(self, ids: Tensor) -> Row:
        """Choose the positions of a row to predict, and hide the tokens there from a masked-LM head."""
        generator = torch.Generator().manual_seed(zlib.crc32(ids.numpy().tobytes(), self.seed) & 0x7FFFFFFF)
        allowed = ~torch.isin(ids, self.special) if self.predict == "masked" else torch.ones_like(ids, dtype=torch.bool)
        if self.predict == "next":
            allowed[-1] = False
        draw = torch.rand(len(ids), generator=generator).masked_fill(~allowed, 2.0)
        positions = draw < self.share
        # At least one, so that no batch is without.
        positions[draw.argmin()] = True
        if self.predict == "next":
            return {"input_ids": ids, "positions": positions, "targets": ids.roll(-1)[positions]}
        hidden = ids.masked_fill(positions, int(self.tokenizer.mask_token_id))
        return {"input_ids": hidden, "positions": positions, "targets": ids[positions]}


def _single(text: Text) -> str:
    if isinstance(text, tuple):
        raise CompactConfigError("`texts` has pairs of texts, but losses at predicted tokens read running text.")
    return text


class HeldRows(Dataset):
    """Rows in memory, in any order."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Read all rows."""
        self.rows: Sequence[Row] = list(rows)
        if not self.rows:
            raise CompactConfigError("`texts` is too short: the tokenizer finds no token in it.")

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Return one."""
        return self.rows[index]


class StreamedRows(IterableDataset):
    """Rows that are read anew at each pass, in their order."""

    def __init__(self, encoder: Encoder, texts: Iterable[Text]) -> None:
        """Note where the texts come from."""
        self.encoder = encoder
        self.texts = texts

    def __iter__(self) -> Iterator[Row]:
        """Read once."""
        return self.encoder.rows(self.texts)


class Collator:
    """Pads rows into a batch: what `forward` takes, the predicted positions and labels, and the teacher's outputs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Note who pads."""
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return a batch."""
        own = [{name: value for name, value in row.items() if name not in _BESIDE_INPUTS} for row in rows]
        if len({len(row["input_ids"]) for row in rows}) > 1 and self.tokenizer.pad_token_id is None:
            raise CompactConfigError(
                "`tokenizer` has no padding token, and the texts differ in length: set one, for example "
                "`tokenizer.pad_token = tokenizer.eos_token`."
            )
        if self.tokenizer.pad_token_id is None:
            batch = {name: torch.stack([torch.as_tensor(row[name]) for row in own]) for name in own[0]}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        else:
            batch = dict(self.tokenizer.pad(own, return_tensors="pt"))
            batch["attention_mask"] = _mask(rows, batch["input_ids"], self.tokenizer.padding_side)
        kept = batch["attention_mask"].bool()
        for name in _BY_TOKEN:
            if name in rows[0]:
                batch[name] = _scatter([row[name] for row in rows], kept)
        for name in _BY_POSITION:
            if name in rows[0]:
                batch[name] = torch.cat([row[name] for row in rows])
        if "teacher_sentence" in rows[0]:
            batch["teacher_sentence"] = torch.stack([row["teacher_sentence"] for row in rows])
        return batch


_BY_TOKEN = ("positions", "teacher_states")
_BY_POSITION = ("targets", "teacher_best_ids", "teacher_best_scores")
_BESIDE_INPUTS = (*_BY_TOKEN, *_BY_POSITION, "teacher_sentence")


def _mask(rows: Sequence[Row], ids: Tensor, side: str) -> Tensor:
    """Return 1 for the tokens of the rows and 0 for their padding (B, T)."""
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    position = torch.arange(ids.shape[1])
    return ((position < lengths) if side == "right" else (position >= ids.shape[1] - lengths)).long()


def _scatter(values: Sequence[Tensor], kept: Tensor) -> Tensor:
    """Put values by token (T', ...) of each row where the row's tokens are in the batch (B, T, ...)."""
    flat = torch.cat(list(values))
    result = flat.new_zeros(*kept.shape, *flat.shape[1:])
    result[kept] = flat
    return result


def split_batch(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Target | None]:
    """Return a batch's inputs of `forward`, its predicted positions and labels, and the teacher's outputs for it."""
    inputs = {name: value for name, value in batch.items() if name not in _BESIDE_INPUTS}
    target = None
    if any(name.startswith("teacher_") for name in batch):
        states = batch.get("teacher_states")
        target = Target(
            layers=None if states is None else (states,),
            sentence=batch.get("teacher_sentence"),
            best_ids=batch.get("teacher_best_ids"),
            best_scores=batch.get("teacher_best_scores"),
        )
    return inputs, batch.get("positions"), batch.get("targets"), target
