"""Small on disk, fast in memory: a table whose rows are decoded once, while all that is stored stays its codes.

A structure takes the class `Materialized…` of its own class, which lasts for this process only: what is saved, copied
or sent knows nothing of decoded rows but which are wanted. They answer calls of the module (look-up, tied head) where
no gradient can reach the table: in eval mode under `torch.no_grad()` or `torch.inference_mode()`, or where none of its
tensors is trained. Everywhere else, and in `dense()`, `embed()`, `project()`, the codes answer.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..modeling.codes import is_traced
from ..modeling.errors import CompactConfigError, config_error
from ..modeling.structure import CompactEmbedding
from .rows import RUNTIMES, DecodedRows

logger = logging.get_logger(__name__)

_Model = TypeVar("_Model", bound=nn.Module)

if TYPE_CHECKING:
    _Structure = CompactEmbedding
else:
    # The structure of a checkpoint that brought its own code has another base.
    _Structure = object


def materialize(model: _Model, runtime: str | None = "int8") -> _Model:
    """Decode all compact tables of a model once, so that look-up and tied head are fast; return the model.

    Only memory changes: `state_dict()`, `save_pretrained()`, `push_to_hub()`, `inspect()` and `decompress()` read the
    codes, and so does training. After training, the rows are decoded again at the next `eval()`.

    Args:
        model: a compact model, however it was loaded, or one of its tables.
        runtime: "int8", with a scale for each row, which moves a value by half a step at most; "float16" or
            "bfloat16"; or None, to read the codes again.
    """
    require_runtime(runtime, "runtime")
    # A checkpoint that brought its own code has classes of its own.
    tables = [module for module in model.modules() if _is_table(module)]
    if not tables:
        raise CompactConfigError(f"`model` is a {type(model).__name__} without a compact table.")
    # All or none: a table that has no rows to decode raises before any has changed.
    decoded = [None if runtime is None else _decoded(table, runtime) for table in tables]
    for table, rows in zip(tables, decoded, strict=True):
        if runtime is not None and not isinstance(table, _Materialized):
            table.__class__ = _materialized_class(type(table))
        if isinstance(table, _Materialized):
            table.take(runtime, rows)
    return model


def require_runtime(runtime: str | None, name: str) -> None:
    """Raise, naming the argument, unless this is how decoded rows may lie in memory, or None."""
    if runtime is not None and runtime not in RUNTIMES:
        raise config_error(name, runtime, f"known are {', '.join(map(repr, RUNTIMES))} and None")


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, CompactEmbedding) or hasattr(type(module), "coded_vectors")


def _decoded(table: Any, runtime: str) -> _Decoded | None:
    return None if table.device.type == "meta" else _Decoded(table, runtime)


class _Decoded:
    """Decoded rows, and the tensors that they were decoded from."""

    def __init__(self, table: CompactEmbedding, runtime: str) -> None:
        tensors = _tensors_of(table)
        # Weak: the identity of a tensor that is gone may be that of another one by now.
        self.tensors = [weakref.ref(tensor) for tensor in tensors]
        self.versions = _versions(tensors)
        self.rows = DecodedRows.of(table, runtime)

    def state(self, table: nn.Module) -> str:
        """Return whether the tensors are the same ones as then, and whether they were written since."""
        tensors = _tensors_of(table)
        same = len(tensors) == len(self.tensors) and all(
            seen() is tensor for seen, tensor in zip(self.tensors, tensors, strict=True)
        )
        return "replaced" if not same else "fresh" if self.versions == _versions(tensors) else "written"


def _tensors_of(table: nn.Module) -> list[Tensor]:
    owned = [owned for module in table.modules() for owned in (module._parameters, module._buffers)]
    return [tensor for tensors in owned for tensor in tensors.values() if tensor is not None]


def _versions(tensors: list[Tensor]) -> list[object]:
    # Inference tensors do not count writes. A dtype or a device can change without one: `module.half()` swaps `.data`.
    return [
        (tensor.data_ptr(), tensor.dtype, tensor.device, 0 if tensor.is_inference() else tensor._version)
        for tensor in tensors
    ]


class _Materialized(_Structure):
    """What a structure does that has decoded rows; mixed in before its own class."""

    _runtime: str | None
    _decoded: _Decoded | None

    def take(self, runtime: str | None, decoded: _Decoded | None) -> None:
        """Read these rows from now on, or, without any, the codes."""
        self._runtime, self._decoded = runtime, decoded
        # Where a library has put a `forward` of its own over that of this class, it still calls it.
        if runtime is None and "forward" not in vars(self):
            del self._runtime, self._decoded
            self.__class__ = type(self).__mro__[2]

    def forward(self, inputs: Tensor, project: bool = False, scale: float | None = None) -> Tensor:
        """Look rows up, or score them, in decoded rows where no gradient can reach the table."""
        rows = None if self._must_read_codes(inputs) else self._current_rows()
        if rows is None:
            return super().forward(inputs, project, scale)
        if project:
            flat = inputs.reshape(-1, self.embedding_dim)
            with torch.autocast(inputs.device.type, enabled=False):
                scores = rows.scores(flat)
            return scores.to(inputs.dtype).reshape(*inputs.shape[:-1], self.num_embeddings)
        ids = inputs.long()
        self.require_ids(ids)
        vectors = rows.look_up(ids, self.dtype)
        factor = self.scale if scale is None else scale
        # Rounded to the model's dtype first, as where codes are read.
        return vectors if factor == 1.0 else vectors * torch.full((), factor, dtype=vectors.dtype, device=ids.device)

    def _must_read_codes(self, inputs: Tensor) -> bool:
        grad = torch.is_grad_enabled()
        if grad and inputs.requires_grad:
            return True
        if not (grad or self.training) or not any(parameter.requires_grad for parameter in self.parameters()):
            return False
        if not self.training and not is_traced():
            logger.warning_once(
                "A materialised table was called in eval mode where gradients could reach it, so its codes are read. "
                "Call the model under `torch.no_grad()`, or freeze the table, to read the decoded rows."
            )
        return True

    def _current_rows(self) -> DecodedRows | None:
        # A compiler that traces the model can neither compare nor decode: it takes what is there.
        if not is_traced() and self._runtime is not None:
            state = "fresh" if self._decoded is None else self._decoded.state(self)
            if state == "replaced":
                # As by offloading, before each call: decoding a table for one call would be slow.
                return None
            if state == "written" or self._decoded is None:
                self.refresh()
        return None if self._decoded is None else self._decoded.rows

    def refresh(self) -> None:
        """Decode again if the table has changed since."""
        if self._runtime is not None and (self._decoded is None or self._decoded.state(self) != "fresh"):
            self._decoded = None
            self._decoded = _decoded(self, self._runtime)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the decoded rows: what the table takes in memory beside what is stored."""
        return 0 if self._decoded is None else self._decoded.rows.nbytes

    # What changes the table.

    def train(self, mode: bool = True) -> Self:
        """Forget rows that training is about to change; decode again before an evaluation."""
        super().train(mode)
        if not mode:
            self.refresh()
        elif any(parameter.requires_grad for parameter in self.parameters()):
            self._decoded = None
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.refresh()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._decoded = None

    @torch.no_grad()
    def resized(self, num_embeddings: int, new_rows: Tensor | None = None) -> Self:
        """Grow or shrink, and decode again."""
        super().resized(num_embeddings, new_rows)
        self.refresh()
        return self

    def _replicate_for_data_parallel(self) -> Any:
        # A replica lives for one call, which is too short to decode anything for.
        replica = super()._replicate_for_data_parallel()
        replica._runtime = replica._decoded = None
        return replica

    # Copies and processes.

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Leave the rows out: copies, in other processes too, decode their own at their first call."""
        state = {**super().__getstate__(), "_decoded": None}
        return _empty, (type(self).__mro__[2],), state

    def extra_repr(self) -> str:
        """Show how the rows lie in memory."""
        return f"{super().extra_repr()}, runtime={self._runtime!r}"


def _empty(structure_class: type[CompactEmbedding]) -> CompactEmbedding:
    materialized = _materialized_class(structure_class)
    return materialized.__new__(materialized)


_classes: dict[type[CompactEmbedding], type[CompactEmbedding]] = {}


def _materialized_class(structure_class: type[Any]) -> type[CompactEmbedding]:
    if structure_class not in _classes:
        namespace = {"__module__": __name__, "__doc__": structure_class.__doc__}
        name = f"Materialized{structure_class.__name__}"
        _classes[structure_class] = type(name, (_Materialized, structure_class), namespace)
    return _classes[structure_class]
