"""The end of a training by several processes."""

from __future__ import annotations

import gc

from accelerate import PartialState


def leave_process_group() -> None:
    """Stop the threads through which this process trained together with others, if it did.

    Last of all, when no Trainer is in use any more: a thread that frees a tensor while Python ends aborts the process,
    whose work is done, and with it the launch.
    """
    # The model that Trainer wraps holds the group, and a Trainer is only freed as a cycle.
    gc.collect()
    PartialState().destroy_process_group()
