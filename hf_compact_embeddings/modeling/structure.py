"""The one interface of a compact table: embed rows, score rows, decode all; and the registry of methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .codes import is_traced
from .configuration import FORMAT_VERSION, STORAGE_DTYPES, StructureConfig
from .errors import CheckpointError, CompactConfigError, UnsupportedArchitectureError, config_error
from .private_rows import PrivateRows
from .table_outline import TableOutline

_ROWS_PER_CHUNK = 8192
# Standard deviation of rows that start at random.
_INITIAL_RANGE = 0.02


class CompactEmbedding(PrivateRows):
    """A stand-in for a table (V, D). Methods implement the `coded_…` half; private rows are handled here.

    A module may have parameters and persistent uint8 buffers only, and must be buildable on the meta
    device: loading builds the tree there, and leaves anything else uninitialised.
    """

    def __init__(
        self,
        config: StructureConfig,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        scale: float = 1.0,
    ) -> None:
        """Build the parts that all methods share, without values.

        Args:
            config: the method's configuration.
            num_embeddings: V, the rows that can be looked up.
            embedding_dim: D.
            padding_idx: the row that `config.mask_padding` reads as zero.
            scale: looked-up rows are multiplied by it (Gemma, BART); scores and `dense()` are not.
        """
        super().__init__()
        self.config = config.resolved(num_embeddings, embedding_dim)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.scale = scale
        self.allocate_private_rows(self.config.private_rows)

    # What a method implements.

    def coded_vectors(self, ids: Tensor) -> Tensor:
        """Decode the rows (..., D) of the ids (...), all below `config.coded_rows`."""
        raise NotImplementedError

    def coded_scores(self, hidden: Tensor) -> Tensor:
        """Return float32 scores (N, coded_rows) of hidden states (N, D), without building V x D."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Start from random values, for training from scratch."""
        raise NotImplementedError

    def keep_rows(self, count: int) -> None:
        """Drop all coded rows from `count` on."""
        raise NotImplementedError

    @property
    def extra_inputs(self) -> tuple[str, ...]:
        """Names of inputs that the model's `forward` takes for the structure, beside the ids."""
        return ()

    def require_fit(self, model: nn.Module) -> None:
        """Raise `UnsupportedArchitectureError` if the model asks for more than the structure can do."""
        return

    def require_ids(self, ids: Tensor) -> None:
        """Raise if an id has no row, as a dense table does; on a GPU nobody waits for the answer."""
        if is_traced() or ids.device.type not in ("cpu", "meta") or not ids.numel():
            return
        if ids.device.type == "meta":
            if self.device.type != "meta":
                raise UnsupportedArchitectureError(
                    "The model moved the ids to where the table's `weight` says it is, which is an outline without "
                    "values: looked for ids on the device of the model."
                )
            return
        least, most = ids.aminmax()
        if least < 0 or most >= self.num_embeddings:
            wrong = int(least) if least < 0 else int(most)
            raise IndexError(f"The id {wrong} has no row: the table has {self.num_embeddings:,} rows.")

    def check_tokenizer(self, stored: Callable[[], Mapping[str, Any]]) -> None:
        """Raise if a checkpoint's tokenizer, whose configuration `stored()` reads, does not suit the structure."""
        return

    def check_values(self) -> None:
        """Raise `CheckpointError` if loaded codes or ids point to rows that do not exist."""
        ids = self.private_id_list()
        sorted_rows = bool((ids.diff() > 0).all()) and (
            ids.numel() == 0 or 0 <= ids[0] and ids[-1] < self.num_embeddings
        )
        if not sorted_rows:
            raise CheckpointError(f"`private_ids` must be different, sorted, and below {self.num_embeddings:,}.")
        if int((ids >= self.coded_rows).sum()) < self.num_embeddings - self.coded_rows:
            raise CheckpointError(
                f"The model has {self.num_embeddings:,} rows (`vocab_size`), but the table has {self.coded_rows:,} "
                f"coded ones and private ones for {ids.numel():,} ids: some rows have no value."
            )

    def collisions(self) -> int:
        """Return how many coded rows share all their codes with an earlier row."""
        return 0

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

    def embed(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        """Return rows (..., D) of ids (...)."""
        ids = ids.long()
        self.require_ids(ids)
        coded_rows = self.coded_rows
        vectors = self.coded_vectors(ids if coded_rows == self.num_embeddings else ids.clamp(max=coded_rows - 1))
        if self.config.mask_padding and self.padding_idx is not None:
            vectors = vectors * (ids != self.padding_idx).unsqueeze(-1)
        if self.private_vectors is not None:
            vectors = self.with_private_rows(vectors, ids, self.private_vectors)
        if scale == 1.0:
            return vectors
        # The scale is rounded to the model's dtype first, as the native scaled embeddings do.
        return vectors * torch.full((), scale, dtype=vectors.dtype, device=vectors.device)

    def project(self, hidden: Tensor) -> Tensor:
        """Return hidden · Eᵀ (..., V) for hidden states (..., D), summed in float32."""
        flat = hidden.reshape(-1, self.embedding_dim)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.coded_scores(flat)
            if self.coded_rows < self.num_embeddings:
                scores = nn.functional.pad(scores, (0, self.num_embeddings - self.coded_rows))
            if self.config.mask_padding and self.padding_idx is not None:
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
            yield self.embed(torch.arange(start, stop, device=self.device))

    @torch.no_grad()
    def resized(self, num_embeddings: int, new_rows: Tensor | None = None) -> Self:
        """Grow or shrink to `num_embeddings` rows, in place, and return self.

        Rows that are added become private rows: `new_rows` (count, D), or the mean of all rows.
        """
        if num_embeddings < 1:
            raise config_error("num_embeddings", num_embeddings, "a table needs at least 1 row")
        old_count = self.num_embeddings
        ids, vectors = self.private_id_list(), self.private_or_empty()
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
            if num_embeddings < self.coded_rows:
                self.keep_rows(num_embeddings)
            if self.padding_idx is not None and self.padding_idx >= num_embeddings:
                self.padding_idx = None
        trainable = self.private_vectors is None or self.private_vectors.requires_grad
        self.config = dataclasses.replace(
            self.config, coded_rows=min(self.coded_rows, num_embeddings), private_rows=ids.numel()
        )
        self.num_embeddings = num_embeddings
        self.set_private_rows(ids, vectors)
        if self.private_vectors is not None:
            self.private_vectors.requires_grad_(trainable)
        return self

    @torch.no_grad()
    def start_from_random(self) -> Self:
        """Draw everything anew, for training from scratch; rows stored exactly are then the last ones."""
        self.reset_parameters()
        if self.private_vectors is not None:
            vectors = torch.randn_like(self.private_vectors) * _INITIAL_RANGE
            count = self.config.private_rows
            self.set_private_rows(torch.arange(count, device=self.device) + self.num_embeddings - count, vectors)
        return self.round_to_storage()

    # What is stored.

    @property
    def coded_rows(self) -> int:
        """Rows that the structure codes itself."""
        assert self.config.coded_rows is not None
        return self.config.coded_rows

    @property
    def weight(self) -> Tensor:
        """Shape, dtype and requires_grad of the table on the meta device, for code that asks; no values."""
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        return TableOutline((self.num_embeddings, self.embedding_dim), self.dtype, trainable)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the dtype that the tensor `name` of the state dict has in a saved file."""
        tensor = self.state_dict()[name]
        return STORAGE_DTYPES[self.config.storage_dtype] if tensor.is_floating_point() else tensor.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: codes, tables and private rows."""
        state = self.state_dict()
        return sum(tensor.numel() * self.stored_dtype(name).itemsize for name, tensor in state.items())

    @torch.no_grad()
    def round_to_storage(self) -> Self:
        """Round all floats to values that saving and loading give back bit by bit."""
        for name, parameter in self.named_parameters():
            parameter.copy_(parameter.to(self.stored_dtype(name)))
        return self

    def extra_repr(self) -> str:
        """Show the shape that the structure stands for."""
        return f"{self.num_embeddings}, {self.embedding_dim}, method={self.config.method!r}, bytes={self.nbytes}"


_REGISTRY: dict[str, tuple[type[StructureConfig], type[CompactEmbedding]]] = {}
_Structure = TypeVar("_Structure", bound=type[CompactEmbedding])


def register_structure(config_class: type[StructureConfig]) -> Callable[[_Structure], _Structure]:
    """Register a structure under its configuration's method name."""

    def register(structure_class: _Structure) -> _Structure:
        _REGISTRY[config_class.method] = (config_class, structure_class)
        return structure_class

    return register


def methods() -> tuple[str, ...]:
    """Return the names of all registered methods."""
    return tuple(sorted(_REGISTRY))


def config_classes() -> list[type[StructureConfig]]:
    """Return the configuration classes of all registered methods, by method name."""
    return [_REGISTRY[method][0] for method in methods()]


def config_class_of(method: str) -> type[StructureConfig]:
    """Return the configuration class of a method."""
    if method not in _REGISTRY:
        raise config_error("method", method, "known methods are " + ", ".join(map(repr, methods())))
    return _REGISTRY[method][0]


def structure_class_of(config: StructureConfig) -> type[CompactEmbedding]:
    """Return the module class that a configuration builds."""
    return _REGISTRY[config.method][1]


def make_config(method: str, **options: object) -> StructureConfig:
    """Build the configuration of a method from its options; unknown options raise."""
    config_class = config_class_of(method)
    known = [field.name for field in dataclasses.fields(config_class)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise CompactConfigError(
            f"method {method!r} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}."
        )
    return config_class(**options)  # type: ignore[arg-type]


def config_from_dict(stored: dict[str, Any]) -> StructureConfig:
    """Read what `StructureConfig.to_dict()` wrote, possibly by another release."""
    fields = dict(stored)
    version = fields.pop("format_version", None)
    if version not in range(1, FORMAT_VERSION + 1):
        raise CheckpointError(
            f"`format_version` is {version!r}, but this code reads versions 1 to {FORMAT_VERSION}: "
            "the checkpoint was written by a newer release, or `compact_embeddings` was edited by hand."
        )
    return make_config(str(fields.pop("method", None)), **fields)


def stored_bytes(config: StructureConfig, num_embeddings: int, embedding_dim: int) -> int:
    """Return exactly what a structure takes for a table (V, D), without building it."""
    with torch.device("meta"):
        return structure_class_of(config)(config, num_embeddings, embedding_dim).nbytes
