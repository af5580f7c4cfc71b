"""How the benchmarks that train use the processor."""

from __future__ import annotations

import torch


def prepare(threads: int) -> None:
    """Take so many threads, and plain attention where there is no GPU.

    The fused attention's backward pass in bfloat16 takes three times as long on CPUs, at the length of a sentence.
    """
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        torch.backends.cuda.enable_flash_sdp(False)  # Despite its name it holds for CPUs too.


def torch_device() -> str:
    """Return where to compute."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """Return what computes, for a record."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
