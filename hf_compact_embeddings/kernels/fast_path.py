"""Which compiled loops read the codes of a table, and when: on a CPU, where nothing asks for gradients or traces."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..modeling.codes import is_traced
from ..modeling.structure import CompactEmbedding, methods, structure_class_of
from .rows import numba_works

logger = logging.get_logger(__name__)

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# Names of modules whose loops did not compile: once is enough to try.
_broken: set[str] = set()


def read_codes(table: CompactEmbedding, inputs: Tensor, project: bool) -> Tensor | None:
    """Return rows of ids (...), or float32 scores of hidden states (N, D), as the table's own methods do, or None."""
    if is_traced() or not inputs.numel():
        return None
    kind: Any = type(table)
    module = _loops_for(kind) if _is_read_here(table, inputs) else None
    if module is None or module.__name__ in _broken:
        return None
    from numba.core.errors import NumbaError

    try:
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            if project:
                return module.scores(table, inputs.float().contiguous())
            # Nothing in the loops looks whether there is such a row.
            least, most = inputs.aminmax()
            if least < 0 or most >= table.layout.coded_rows:
                return None
            found = module.look_up(table, inputs.reshape(-1).contiguous())
    except NumbaError as error:
        logger.warning(f"Codes of {type(table).__name__} are read in plain torch: numba cannot compile loops: {error}")
        _broken.add(module.__name__)
        return None
    return None if found is None else found.to(table.dtype).view(*inputs.shape, table.embedding_dim)


def _is_read_here(table: nn.Module, inputs: Tensor) -> bool:
    """Whether all is plain numbers in this machine's memory, and no gradient is asked for."""
    if getattr(table, "_is_replica", False):
        # Of `nn.DataParallel`: its tensors are plain attributes, so that nothing tells which of them train.
        return False
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
def _loops_for(structure_class: type[CompactEmbedding]) -> Any:
    """Return the module `read_<method>` of a structure, or None where there is none, or it does not work.

    It has `look_up(table, ids)`, float32 rows of ids (n,), and `scores(table, hidden)`, those of float32 hidden states
    (N, D); both return None where the structure itself has to answer. They are imported late, as they need numba.
    """
    method = structure_class.options_class.method
    if method not in methods():
        return None
    registered = structure_class_of(method)
    own = all(getattr(structure_class, name) is getattr(registered, name) for name in ("coded_vectors", "coded_scores"))
    name = f"{__package__}.read_{method}"
    if not own or importlib.util.find_spec(name) is None or not numba_works():
        return None
    return importlib.import_module(name)
