"""Work on rows, shared out among threads of an ordinary pool: those of numba may not be entered from two at once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# Below so many multiplications threads cost more than they save.
_LEAST_WORK = 1 << 20


def shared_out(work: Callable[[int, int], object], count: int, size: int) -> None:
    """Do work that is given as first and last: here, or by as many threads as torch takes."""
    threads = torch.get_num_threads()
    if threads == 1 or size < _LEAST_WORK:
        work(0, count)
        return
    step = -(-count // (4 * threads))
    # Read to the end, so that what a thread raises is raised here.
    list(_pool(os.getpid(), threads).map(lambda first: work(first, min(first + step, count)), range(0, count, step)))


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of a process: a fork has none of those of its parent."""
    return ThreadPoolExecutor(threads, thread_name_prefix="compact-embeddings")
