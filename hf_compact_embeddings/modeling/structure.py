"""The one interface of a compact table: embed rows, score rows, decode all; and what a checkpoint says of a table.

A structure stands for a table of V rows and D columns. Its tensors are those of its method, which each
`structure_<method>.py` lists, and two that every structure can have:

| tensor | shape | type | meaning |
|---|---|---|---|
| `private_vectors` | (m, D) | float | rows stored exactly: special tokens, frequent tokens, rows added later |
| `private_ids` | (m, 4) | uint8 | their ids, rising, each a little-endian number of 32 bits |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from .codes import is_traced, pack_codes, unpack_codes
from .errors import CheckpointError, UnsupportedArchitectureError, config_error
from .options import STORAGE_DTYPES, StructureConfig, StructureLayout
from .tied import TableOutline

_ROWS_PER_CHUNK = 8192
PRIVATE_ID_BITS = 32


class CompactEmbedding(nn.Module):
    """A stand-in for a table (V, D). Methods implement the `coded_…` half; private rows are handled here.

    A module may have parameters and persistent uint8 buffers only, and must be buildable on the meta
    device: loading builds the tree there, and leaves anything else uninitialised.
    """

    options_class: ClassVar[type[StructureConfig]]
    layout_class: ClassVar[type[StructureLayout]]

    options: Any
    layout: Any
    private_vectors: nn.Parameter | None
    private_ids: Tensor | None

    def __init__(
        self,
        options: StructureConfig,
        layout: StructureLayout,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Build the parts that all methods share, without values.

        Args:
            options: what was asked for.
            layout: what was found: all sizes.
            num_embeddings: V, the rows that can be looked up.
            embedding_dim: D.
            padding_idx: the row that `layout.mask_padding` reads as zero.
            scale: looked-up rows are multiplied by it (Gemma, BART); scores and `dense()` are not.
        """
        super().__init__()
        self.options, self.layout = options, layout
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.scale = padding_idx, scale
        self.check_layout()
        self._allocate_private_rows(layout.private_rows)
        self.allocate()

    # What a method implements.

    def allocate(self) -> None:
        """Register the tensors of the method, without values; the base class has its own already."""
        raise NotImplementedError

    @classmethod
    def layout_for(cls, options: Any, rows: int, width: int, max_bytes: int | None = None) -> Any:
        """Return the sizes that options alone give a table (rows, width), in at most so many bytes.

        A random start has them, and a fit that finds no sizes of its own.
        """
        raise NotImplementedError

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Decode the rows (..., D) of the ids (...), all below `layout.coded_rows`."""
        raise NotImplementedError

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Return float32 scores (N, coded_rows) of hidden states (N, D), without building V x D."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Start from random values, for training from scratch."""
        raise NotImplementedError

    def keep_rows(self, count: int) -> None:
        """Drop all coded rows from `count` on, and from the layout what belongs to them."""
        raise NotImplementedError

    @classmethod
    def random_layout(cls, options: StructureConfig, rows: int, width: int) -> Any:
        """Return the sizes of a random start: no rows are private, and padding reads as zero."""
        layout = cls.layout_for(options, rows, width, options.budget(rows, width))
        return dataclasses.replace(layout, private_rows=0, mask_padding=True)

    def fast_path(self, inputs: Tensor, project: bool) -> Tensor | None:
        """Return coded rows of ids, or scores, or None to have them read plainly. The package has another, if there."""
        return None

    # What a method may add to.

    def check_layout(self) -> None:
        """Raise if the sizes contradict each other or the table; nothing is allocated yet."""
        coded, private, rows = self.layout.coded_rows, self.layout.private_rows, self.num_embeddings
        if coded > rows:
            raise config_error("coded_rows", coded, f"the table has {rows:,} rows (`vocab_size`)")
        if not rows - coded <= private <= rows:
            allowed = f"with {coded:,} coded rows of {rows:,} it must be {rows - coded:,} to {rows:,}"
            raise config_error("private_rows", private, allowed)

    def check_values(self) -> None:
        """Raise `CheckpointError` if loaded codes or ids point to rows that do not exist."""
        ids = self.private_id_list()
        rows, coded = self.num_embeddings, self.layout.coded_rows
        if ids.numel() and not (bool((ids.diff() > 0).all()) and 0 <= ids[0] and ids[-1] < rows):
            raise CheckpointError(f"`private_ids` must be different, sorted, and below {rows:,}.")
        if int((ids >= coded).sum()) < rows - coded:
            raise CheckpointError(
                f"The model has {rows:,} rows (`vocab_size`), but the table has {coded:,} coded ones and private ones "
                f"(`private_ids`) for {ids.numel():,} ids: some rows have no value."
            )
        for name, parameter in self.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise CheckpointError(f"`{name}` holds NaN or infinity.")

    def attach(self, model: nn.Module) -> None:
        """Prepare a model in which this structure has taken its place: most need nothing."""

    def require_ids(self, ids: Tensor) -> None:
        """Raise if an id has no row, as a dense table does; on a GPU nobody waits for the answer."""
        if is_traced() or not ids.numel():
            return
        if ids.device.type == "meta" != self.device.type:
            raise UnsupportedArchitectureError(
                "The model moved the ids to where the table's `weight` says it is, which is an outline without "
                "values: looked for ids on the device of the model."
            )
        if ids.device.type != "cpu":
            return
        least, most = ids.aminmax()
        if least < 0 or most >= self.num_embeddings:
            wrong = int(least) if least < 0 else int(most)
            raise IndexError(f"The id {wrong} has no row: the table has {self.num_embeddings:,} rows.")

    def coded_ids(self, ids: Tensor) -> Tensor:
        """Return which coded rows to read for ids, of rows that have no code any.

        An id that nobody has looked at, under a tracer or on a GPU, may be none: indexing would read negative ones from
        the end. They become ids beyond all rows, which every index operation refuses.
        """
        rows, coded_rows = self.num_embeddings, self.layout.coded_rows
        coded = ids if coded_rows == rows else ids.clamp(max=coded_rows - 1)
        if ids.device.type == "cpu" and not is_traced():
            return coded
        return coded.where((ids >= 0) & (ids < rows), coded_rows)

    # What everybody uses.

    def forward(self, inputs: Tensor, project: bool = False, scale: float | None = None) -> Tensor:
        """Look rows up, or score them: one entry point, so that module hooks act on both.

        Args:
            inputs: ids (...); with `project`, hidden states (..., D).
            project: score all rows instead of looking some up.
            scale: multiply looked-up rows by this instead of the structure's own scale.
        """
        if project:
            return self.project(inputs)
        return self.embed(inputs, self.scale if scale is None else scale)

    def embed(self, ids: Tensor, scale: float = 1.0, plain: bool = False) -> Tensor:
        """Return rows (..., D) of ids (...); plain ones have the same bits wherever they are read."""
        if ids.is_floating_point() or ids.dtype is torch.bool:
            raise TypeError(f"Ids are whole numbers, but these are {ids.dtype}.")
        ids = ids.long()
        self.require_ids(ids)
        coded = self.coded_ids(ids)
        found = None if plain else self.fast_path(coded, False)
        vectors = self.coded_vectors(coded) if found is None else found
        if self.layout.mask_padding and self.padding_idx is not None:
            vectors = vectors * (ids != self.padding_idx).unsqueeze(-1)
        if self.private_vectors is not None:
            vectors = self._with_private_rows(vectors, ids, self.private_vectors)
        if scale == 1.0:
            return vectors
        # The scale is rounded to the model's dtype first, as the native scaled embeddings do.
        return vectors * torch.full((), scale, dtype=vectors.dtype, device=vectors.device)

    def project(self, hidden: Tensor) -> Tensor:
        """Return hidden · Eᵀ (..., V) for hidden states (..., D), summed in float32."""
        flat = hidden.reshape(-1, self.embedding_dim)
        with torch.autocast("cpu" if hidden.is_meta else hidden.device.type, enabled=False):
            found = self.fast_path(flat, True)
            scores = self.coded_scores(flat) if found is None else found
            if self.layout.coded_rows < self.num_embeddings:
                scores = nn.functional.pad(scores, (0, self.num_embeddings - self.layout.coded_rows))
            if self.layout.mask_padding and self.padding_idx is not None:
                padding = torch.full((1,), self.padding_idx, device=scores.device)
                scores = scores.index_fill(-1, padding, 0.0)
            if self.private_vectors is not None:
                exact = flat.float() @ self.private_vectors.float().T
                scores = scores.index_copy(-1, self.private_id_list(), exact)
        return scores.to(hidden.dtype).reshape(*hidden.shape[:-1], self.num_embeddings)

    def dense(self) -> Tensor:
        """Decode the whole table (V, D). The only thing here that needs V x D."""
        return torch.cat(list(self.dense_chunks()))

    def dense_chunks(self, rows: int = _ROWS_PER_CHUNK) -> Iterator[Tensor]:
        """Decode the table in order, some rows at a time."""
        for start in range(0, self.num_embeddings, rows):
            stop = min(start + rows, self.num_embeddings)
            yield self.embed(torch.arange(start, stop, device=self.device), plain=True)

    @torch.no_grad()
    def resized(self, num_embeddings: int, new_rows: Tensor | None = None) -> Self:
        """Grow or shrink to `num_embeddings` rows, in place, and return self.

        Rows that are added become private rows: `new_rows` (count, D), or the mean of all rows.
        """
        if num_embeddings < 1:
            raise config_error("num_embeddings", num_embeddings, "a table needs at least 1 row")
        old_count, trainable = self.num_embeddings, True
        ids, vectors = self.private_id_list(), torch.empty(0, self.embedding_dim, device=self.device, dtype=self.dtype)
        if self.private_vectors is not None:
            vectors, trainable = self.private_vectors, self.private_vectors.requires_grad
        if num_embeddings > old_count:
            added = num_embeddings - old_count
            if new_rows is None:
                mean = torch.stack([chunk.sum(0) for chunk in self.dense_chunks()]).sum(0) / old_count
                new_rows = mean.expand(added, -1)
            ids = torch.cat([ids, torch.arange(old_count, num_embeddings, device=ids.device)])
            vectors = torch.cat([vectors, new_rows.to(vectors)])
        else:
            kept = ids < num_embeddings
            ids, vectors = ids[kept], vectors[kept]
            if num_embeddings < self.layout.coded_rows:
                self.keep_rows(num_embeddings)
                self.layout = dataclasses.replace(self.layout, coded_rows=num_embeddings)
            if self.padding_idx is not None and self.padding_idx >= num_embeddings:
                self.padding_idx = None
        self.num_embeddings = num_embeddings
        self.set_private_rows(ids, vectors)
        if self.private_vectors is not None:
            self.private_vectors.requires_grad_(trainable)
        return self

    # Rows stored exactly.

    def private_id_list(self) -> Tensor:
        """Return the sorted ids (m,) of the rows stored exactly, as int64."""
        if self.private_ids is None:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        if is_traced():
            return unpack_codes(self.private_ids, 1, PRIVATE_ID_BITS).squeeze(-1)
        # The same without arithmetic, for little-endian machines, which are all that torch runs on.
        return self.private_ids.view(torch.int32).squeeze(-1).long()

    @torch.no_grad()
    def set_private_rows(self, ids: Tensor, vectors: Tensor) -> None:
        """Store the rows `vectors` (m, D) exactly under the sorted, unique `ids` (m,)."""
        self._allocate_private_rows(ids.numel(), like=vectors)
        self.layout = dataclasses.replace(self.layout, private_rows=ids.numel())
        if self.private_ids is not None and self.private_vectors is not None:
            self.private_ids.copy_(pack_codes(ids.unsqueeze(-1), PRIVATE_ID_BITS))
            self.private_vectors.copy_(vectors)

    def _allocate_private_rows(self, count: int, like: Tensor | None = None) -> None:
        """Make room for `count` rows of the device and dtype of `like`, without values."""
        device, dtype = (None, None) if like is None else (like.device, like.dtype)
        vectors, ids = None, None
        if count:
            vectors = nn.Parameter(torch.empty(count, self.embedding_dim, device=device, dtype=dtype))
            ids = torch.empty(count, PRIVATE_ID_BITS // 8, dtype=torch.uint8, device=device)
        self.register_parameter("private_vectors", vectors)
        self.register_buffer("private_ids", ids)

    def _with_private_rows(self, vectors: Tensor, ids: Tensor, exact: Tensor) -> Tensor:
        """Put the exact rows (m, D) over the coded vectors (..., D) of the ids that have one."""
        private_ids = self.private_id_list()
        # Searching the short sorted list needs no slot table with an entry for each token. Ids that are a view of
        # others may not be contiguous, of which torch would warn.
        slot = torch.searchsorted(private_ids, ids.contiguous()).clamp_(max=private_ids.numel() - 1)
        hit = private_ids.take(slot) == ids
        if is_traced() or ids.device.type != "cpu":
            return torch.where(hit.unsqueeze(-1), nn.functional.embedding(slot, exact), vectors)
        # Shapes that depend on the data break a compiled graph and make a GPU wait, but cost a CPU less.
        positions = hit.view(-1).nonzero().squeeze(-1)
        if positions.numel():
            rows = exact.index_select(0, slot.view(-1).index_select(0, positions))
            vectors = vectors.view(-1, self.embedding_dim).index_copy_(0, positions, rows).view_as(vectors)
        return vectors

    # What is stored.

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.state_dict().values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that decoded rows have."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    @property
    def weight(self) -> Tensor:
        """Shape, dtype and requires_grad of the table on the meta device, for code that asks; no values."""
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        return TableOutline((self.num_embeddings, self.embedding_dim), self.dtype, trainable)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the dtype that the tensor `name` of the state dict has in a saved file."""
        tensor = self.state_dict()[name]
        return STORAGE_DTYPES[self.options.storage_dtype] if tensor.is_floating_point() else tensor.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: codes, tables and private rows. The only count of bytes."""
        state = self.state_dict()
        return sum(tensor.numel() * self.stored_dtype(name).itemsize for name, tensor in state.items())

    @torch.no_grad()
    def round_to_storage(self) -> Self:
        """Round all floats to values that saving and loading give back bit by bit."""
        for name, parameter in self.named_parameters():
            parameter.copy_(parameter.to(self.stored_dtype(name)))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.compact_embeddings` holds of this table, as plain JSON."""
        return {**self.options.to_dict(), "layout": self.layout.to_json()}

    def extra_repr(self) -> str:
        """Show the shape that the structure stands for."""
        return f"{self.num_embeddings}, {self.embedding_dim}, method={self.options.method!r}, bytes={self.nbytes}"


# By the name of the method. Each file `structure_<method>.py` adds its own when it is imported.
_STRUCTURES: dict[str, type[CompactEmbedding]] = {}
_Structure = TypeVar("_Structure", bound=type[CompactEmbedding])


def register_structure(structure_class: _Structure) -> _Structure:
    """Add a structure class to those that checkpoints can name; its method's name must be new."""
    name, method = structure_class.__name__, structure_class.options_class.method
    taken = _STRUCTURES.get(method)
    if taken is not None and (taken.__module__, taken.__qualname__) != (structure_class.__module__, name):
        raise TypeError(f"The method {method!r} is {taken.__name__} already: take another name for {name}.")
    _STRUCTURES[method] = structure_class
    return structure_class


def methods() -> tuple[str, ...]:
    """Return the names of all registered methods."""
    return tuple(sorted(_STRUCTURES))


def structure_class_of(method: object) -> type[CompactEmbedding]:
    """Return the class that implements a method."""
    if not isinstance(method, str) or method not in _STRUCTURES:
        raise config_error("method", method, "known methods are " + ", ".join(map(repr, methods())))
    return _STRUCTURES[method]
