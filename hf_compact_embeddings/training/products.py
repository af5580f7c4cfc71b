"""Matrix products of float32 in bfloat16 where the processor has units for it and is faster so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

# Of the products that are timed: (rows, inner) by (inner, columns).
_SHAPE = (512, 512, 2048)
_TRIALS = 3
# Times faster, below which nothing is worth less exact products.
_LEAST_GAIN = 1.5


@contextlib.contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Multiply in bfloat16, and add up in float32, where that is much faster; afterwards all is as it was before.

    Weights, states and sums stay in float32. Which processors are faster so, nothing tells but the clock.
    """
    if device.type != "cpu":
        # There autocast does it.
        yield
        return
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        exact = _seconds()
        torch.set_float32_matmul_precision("medium")
        if exact < _LEAST_GAIN * _seconds():
            torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds() -> float:
    """Return how long a product takes, at its fastest."""
    rows, inner, columns = _SHAPE
    one, other = torch.ones(rows, inner), torch.ones(inner, columns)
    times = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        torch.mm(one, other)
        times.append(time.perf_counter() - began)
    return min(times)
