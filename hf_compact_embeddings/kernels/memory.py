"""What a compact table takes in memory: all that it stores, what is read from that once, and decoded rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling.structure import CompactEmbedding


@torch.no_grad()
def resident_bytes(table: CompactEmbedding) -> int:
    """Return the bytes that a table takes from its first look-up on."""
    if table.device.type != "meta":
        # What is read once is read now.
        table(torch.zeros(1, dtype=torch.int64, device=table.device))
    read_once = [found for _, found in getattr(table, "_known", {}).values()]
    tensors = [*table.state_dict().values(), *_numbers_in(read_once)]
    # Some share the memory of others.
    memory = {where: size for where, size in map(_memory_of, tensors) if size}
    return sum(memory.values()) + getattr(table, "decoded_bytes", 0)


def _numbers_in(value: Any) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """Yield all tensors and arrays of what was read."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _numbers_in(list(vars(value).values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers_in(part)


def _memory_of(numbers: Tensor | np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return where numbers begin, and how many bytes they take."""
    where = numbers.data_ptr() if isinstance(numbers, Tensor) else numbers.ctypes.data
    return where, numbers.nbytes
