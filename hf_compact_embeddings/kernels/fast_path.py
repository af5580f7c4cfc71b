"""Which compiled loops read the codes of a table, and when: on a CPU, where nothing asks for gradients or traces."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..modeling.codes import is_traced
from ..modeling.structure import CompactEmbedding
from ..modeling.structure_rotated import RotatedEmbedding
from .rows import numba_works

logger = logging.get_logger(__name__)

# The module of a structure has `look_up(table, ids)`, float32 rows of ids (n,), and `scores(table, hidden)`, of float32
# hidden states (N, D). Both may return None, where the plain path has to answer. Imported late: they need numba.
_MODULES: dict[type[CompactEmbedding], str] = {RotatedEmbedding: "rotated"}
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def fast_path(table: CompactEmbedding, inputs: Tensor, project: bool) -> Tensor | None:
    """Return rows of ids (...), or float32 scores of hidden states (N, D), as the table's own methods do, or None."""
    if is_traced():
        return None
    name = next((_MODULES[kind] for kind in type(table).__mro__ if kind in _MODULES), None)
    if name is None or not _is_read_here(table, inputs):
        return None
    module = _module(name)
    if module is None:
        return None
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        if project:
            return module.scores(table, inputs.float().contiguous())
        found = module.look_up(table, inputs.reshape(-1).contiguous())
    return None if found is None else found.to(table.dtype).view(*inputs.shape, table.embedding_dim)


def _is_read_here(table: nn.Module, inputs: Tensor) -> bool:
    """Whether all is plain numbers in this machine's memory, and no gradient is asked for."""
    tensors = [tensor for owned in (table._parameters, table._buffers) for tensor in owned.values()]
    for tensor in (inputs, *tensors):
        if tensor is None:
            continue
        if tensor.device.type != "cpu" or type(tensor) not in (Tensor, nn.Parameter):
            return False
        if tensor.requires_grad and torch.is_grad_enabled():
            return False
        if tensor is not inputs and tensor.is_floating_point() and tensor.dtype not in _TYPES:
            return False
    try:
        # What stands for many tensors, as under vmap, has no memory of its own.
        inputs.data_ptr()
    except RuntimeError:
        return False
    return True


@functools.cache
def _module(name: str) -> Any:
    """Return the loops of a structure, or None where they do not work; cached, so that the reason is logged once."""
    return importlib.import_module(f".{name}", __package__) if numba_works() else None
