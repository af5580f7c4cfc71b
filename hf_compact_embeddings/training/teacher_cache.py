"""What a teacher says about texts, kept on disk: shards of safetensors that are read row by row."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..modeling.errors import CheckpointError, CompactConfigError
from ..progress import step
from .losses import predicts, run, target_of
from .rows import Collator, Row, split_batch

FORMAT_VERSION = 2
_MANIFEST = "teacher_cache.json"
_ROWS_PER_SHARD = 4096
# The share that these leave over is far below a per cent in a trained model.
_BEST_TOKENS = 64


def write_cache(
    folder: str | Path,
    rows: Iterable[Row],
    teacher: PreTrainedModel,
    collator: Collator,
    losses: Mapping[str, float],
    recipe: Mapping[str, Any],
    batch_size: int = 32,
) -> Path:
    """Write the teacher's outputs for rows; the manifest comes last, so that a broken run is seen.

    Args:
        folder: where to.
        rows: of ids, with positions where tokens are predicted.
        teacher: the original.
        collator: pads rows.
        losses: what is asked of the teacher.
        recipe: how the rows were made, to compare with when the cache is read.
        batch_size: rows that the teacher reads at a time.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    training = teacher.training
    teacher.eval()
    counts: list[int] = []
    try:
        iterator = iter(rows)
        with step("Asking the teacher") as asked:
            while shard := list(islice(iterator, _ROWS_PER_SHARD)):
                for chosen in _batches(shard, batch_size):
                    answered = _ask([shard[index] for index in chosen], teacher, collator, losses)
                    for index, row in zip(chosen, answered, strict=True):
                        shard[index] = row
                    asked.update(len(chosen))
                _write_shard(path / _shard_name(len(counts)), shard)
                counts.append(len(shard))
    finally:
        teacher.train(training)
    if not counts:
        raise CompactConfigError("`texts` is too short: the tokenizer finds no token in it.")
    manifest = {"format_version": FORMAT_VERSION, "recipe": dict(recipe), "rows": counts}
    draft = path / f"{_MANIFEST}.part"
    draft.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    draft.rename(path / _MANIFEST)
    return path


def is_cache(folder: str | Path | None) -> bool:
    """Tell whether there is a folder with a cache that was written to its end."""
    return folder is not None and (Path(folder) / _MANIFEST).is_file()


class TeacherCache(Dataset):
    """Rows with the teacher's outputs, read from disk one at a time."""

    def __init__(self, folder: str | Path, recipe: Mapping[str, Any] | None = None) -> None:
        """Open a cache.

        Args:
            folder: that `write_cache` has written.
            recipe: what the rows must have been made with; any difference raises.
        """
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
            version, self.recipe, counts = manifest["format_version"], manifest["recipe"], manifest["rows"]
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"`cache` {str(folder)!r} holds no teacher's outputs: {error!r}.") from error
        if version != FORMAT_VERSION:
            raise CheckpointError(f"`cache` {str(folder)!r} has format {version!r}, but {FORMAT_VERSION} is read here.")
        given = json.loads(json.dumps(dict(recipe or {})))
        differing = {name: value for name, value in given.items() if self.recipe.get(name) != value}
        if differing:
            there = ", ".join(f"{name}={self.recipe.get(name)!r}" for name in differing)
            here = ", ".join(f"{name}={value!r}" for name, value in differing.items())
            raise CompactConfigError(f"`cache` {str(folder)!r} was made with {there}, but {here} is asked for.")
        self.ends = torch.tensor(counts).cumsum(0).tolist()
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        """Return how many rows there are."""
        return self.ends[-1]

    def __getitem__(self, index: int) -> Row:
        """Read a row."""
        if not -len(self) <= index < len(self):
            # What a loop over the rows ends with.
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        shard = bisect_right(self.ends, index)
        row = index - (self.ends[shard - 1] if shard else 0)
        if shard not in self._open:
            self._open[shard] = safe_open(self.folder / _shard_name(shard), framework="pt")
        return _read_row(self._open[shard], row)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when a worker process takes a copy."""
        return self.__dict__ | {"_open": {}}


def _shard_name(number: int) -> str:
    return f"teacher-{number:05d}.safetensors"


def _batches(rows: list[Row], size: int) -> Iterator[list[int]]:
    """Yield the indices of rows that go together: of a length, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    return (order[start : start + size] for start in range(0, len(order), size))


@torch.no_grad()
def _ask(rows: list[Row], teacher: PreTrainedModel, collator: Collator, losses: Mapping[str, float]) -> list[Row]:
    """Return rows with what the teacher says about them."""
    batch = {name: value.to(teacher.device) for name, value in collator(rows).items()}
    inputs, positions, _, _ = split_batch(batch)
    mask = inputs["attention_mask"]
    target = target_of(run(teacher, teacher, inputs, positions if predicts(losses) else None), mask, losses)
    answered: list[Row] = [dict(row) for row in rows]
    if target.layers is not None:
        states = target.layers[-1][mask.bool()].half().cpu()
        _put(answered, "teacher_states", states.split([len(row["input_ids"]) for row in rows]))
    if target.sentence is not None:
        _put(answered, "teacher_sentence", target.sentence.cpu())
    if target.logits is not None:
        best = target.logits.float().log_softmax(-1).topk(min(_BEST_TOKENS, target.logits.shape[-1]))
        counts = [int(row["positions"].sum()) for row in rows]
        _put(answered, "teacher_best_ids", best.indices.cpu().split(counts))
        _put(answered, "teacher_best_scores", best.values.half().cpu().split(counts))
    return answered


def _put(rows: list[Row], name: str, values: Iterable[Tensor]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _write_shard(path: Path, rows: list[Row]) -> None:
    """Write rows: what has one value a row stacked, all else joined, with the ends of the rows beside it."""
    tensors: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [torch.as_tensor(row[name]) for row in rows]
        if name == "teacher_sentence":
            tensors[name] = torch.stack(values)
        else:
            tensors[name] = torch.cat(values)
            tensors[f"{name}.ends"] = torch.tensor([len(value) for value in values]).cumsum(0)
    draft = path.with_suffix(".part")
    save_file(tensors, draft)
    draft.rename(path)


def _read_row(shard: Any, index: int) -> Row:
    row: Row = {}
    names = set(shard.keys())
    for name in names:
        if name.endswith(".ends"):
            continue
        if f"{name}.ends" not in names:
            row[name] = shard.get_slice(name)[index]
            continue
        ends = shard.get_slice(f"{name}.ends")
        start = int(ends[index - 1 : index][0]) if index else 0
        row[name] = shard.get_slice(name)[start : int(ends[index : index + 1][0])]
    return row
