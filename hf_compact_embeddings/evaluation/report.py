"""inspect(): what compact tables take, and how faithfully they stand for the dense ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evidence import gather
from ..kernels.memory import resident_bytes
from ..modeling.architectures import IN_HEAD, find_input_table
from ..modeling.errors import CompactConfigError
from ..modeling.layers import compact_layers, stored_dtypes
from ..modeling.modeling_compact import CompactModelMixin
from ..modeling.structure import CompactEmbedding
from ..transformers_internals import ignored_on_save
from .bands import Band
from .layers import LayersReport, dense_layer_bytes, inspect_layers
from .neighbours import Neighbours
from .reading import Collisions, Fidelity, RowReader, read_rows
from .words import Words

# What a report says of the first table alone.
_OF_FIRST = ("options", "rows", "width", "private_rows", "collisions")
_FIDELITY = ("relative_mse", "mean_cosine", "shannon_bound", "gap_db")


@dataclasses.dataclass(frozen=True)
class TableReport:
    """One of a model's compact tables; see `Report` for the figures that have the same names.

    Attributes:
        table: "input", or "head" for that of an output head that is not tied.
        path: of its structure among the model's modules.
    """

    table: str
    path: str
    method: str
    options: dict[str, Any]
    rows: int
    width: int
    dense_bytes: int
    compact_bytes: int
    memory_bytes: int
    floats: int
    private_rows: int
    collisions: int
    relative_mse: float | None = None
    mean_cosine: float | None = None
    shannon_bound: float | None = None
    gap_db: float | None = None

    @property
    def weights(self) -> int:
        """The values of the dense table."""
        return self.rows * self.width

    def __str__(self) -> str:
        """Return the figures in one line."""
        parts = [
            f"{self.rows:,} x {self.width:,}, {self.method}: {self.dense_bytes:,} -> {self.compact_bytes:,} bytes, "
            f"{self.dense_bytes / self.compact_bytes:.1f}x",
            f"{self.private_rows:,} rows exactly",
            f"{self.collisions:,} collide",
        ]
        if self.relative_mse is not None:
            parts += [f"relative MSE {self.relative_mse:.4f} (Shannon bound {self.shannon_bound:.4f})"]
            parts += [f"mean cosine {self.mean_cosine:.4f}"]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Report:
    """Bytes before and after, all counted, and the fidelity where the dense model is known.

    Bytes, and what follows from them, are those of all compact tables together. Where there are two, options, sizes,
    rows that collide and the fidelity are those of the first, the input table; `tables` has them of each.

    Attributes:
        method: name of the method; of several tables that differ in it, all names.
        options: the method's configuration.
        rows: V, the tokens.
        width: D.
        dense_bytes: of the dense tables, in their own dtype.
        compact_bytes: of codes, tables and private rows, as a saved file holds them.
        memory_bytes: of the same in memory, in the model's dtype, with what is read from codes once and stays there,
            and with rows that `materialize()` has decoded.
        ratio: dense over compact bytes.
        byte_reduction: per cent of the bytes that are gone.
        parameter_reduction: per cent of the floats that are gone; the papers' count, which leaves out codes.
        bits_per_weight: 8 · compact_bytes / (V · D).
        private_rows: rows stored exactly.
        collisions: rows that are looked up as exactly the vector of an earlier row.
        model_bytes: of all tensors of the compact model as saved.
        code_files: how many code files a checkpoint carries for loading without this package.
        code_bytes: of these files.
        other_tables: further dense matrices with a row a token, and their bytes: untied heads and their like.
        evidence: what the fit was told beside the table, where it is known.
        calibration: how it was trained after the fit, where it was.
        relative_mse: Σ|ê − e|² / Σ|e − ē|² over all rows.
        mean_cosine: mean over the rows of the cosine between ê and e.
        shannon_bound: the relative MSE that a Gaussian source of the same covariance allows at this rate.
        gap_db: relative_mse over shannon_bound, in decibels. A clustered table can go below zero.
        dense_model_bytes: of all tensors of the model with dense tables and layers.
        layers: how the linear layers are stored, where that is not as they were.
        tables: each compact table: the input table, and that of a head that is not tied.
        bands: where the error of the input table lies, by how often tokens occur; without a tokenizer nothing tells.
        neighbours: some words, frequent and rare, with the tokens that lie nearest before and after.
    """

    method: str
    options: dict[str, Any]
    rows: int
    width: int
    dense_bytes: int
    compact_bytes: int
    memory_bytes: int
    ratio: float
    byte_reduction: float
    parameter_reduction: float
    bits_per_weight: float
    private_rows: int
    collisions: int
    model_bytes: int
    code_files: int
    code_bytes: int
    other_tables: dict[str, int]
    evidence: str | None = None
    calibration: dict[str, Any] | None = None
    relative_mse: float | None = None
    mean_cosine: float | None = None
    shannon_bound: float | None = None
    gap_db: float | None = None
    dense_model_bytes: int = 0
    layers: LayersReport | None = None
    tables: list[TableReport] = dataclasses.field(default_factory=list)
    bands: list[Band] = dataclasses.field(default_factory=list)
    neighbours: list[Neighbours] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return dataclasses.asdict(self)

    def calibration_in_words(self) -> str:
        """Say how far calibration went, and what it brought where that was measured."""
        calibration = self.calibration or {}
        share, held_out = calibration.get("share"), calibration.get("held_out_loss")
        parts = [f"{calibration['steps']:,} steps"] if "steps" in calibration else []
        parts += [] if share is None else [f"{share:.0%} of the way"]
        parts += [] if held_out is None else [f"held-out loss {held_out['fit']:.4f} -> {held_out['now']:.4f}"]
        return ", ".join(parts)

    def __str__(self) -> str:
        """Return the report as a table."""
        return "\n".join(f"{label:<24}{value}" for label, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        several = len(self.tables) > 1
        yield "method", self.method
        if not several:
            yield "table", f"{self.rows:,} x {self.width:,}"
        yield "bytes, dense", f"{self.dense_bytes:,}"
        yield "bytes, compact", f"{self.compact_bytes:,}"
        yield "bytes, in memory", f"{self.memory_bytes:,}"
        yield "ratio", f"{self.ratio:.1f}x   ({self.byte_reduction:.2f} % of the bytes gone)"
        yield "floats gone", f"{self.parameter_reduction:.3f} %"
        yield "bits per weight", f"{self.bits_per_weight:.4f}"
        if several:
            for table in self.tables:
                yield f"{table.table} table", str(table)
        else:
            yield "rows kept exactly", f"{self.private_rows:,}"
            yield "rows that collide", f"{self.collisions:,}"
        if self.layers is not None:
            yield "layers", str(self.layers)
        yield "whole model, saved", f"{self.model_bytes:,} bytes"
        yield "code beside it", f"{self.code_bytes:,} bytes in {self.code_files} files"
        for name, size in self.other_tables.items():
            yield "still dense", f"{name}: {size:,} bytes"
        if self.evidence is not None:
            yield "fitted with", self.evidence
        if self.calibration is not None:
            yield "calibrated", self.calibration_in_words()
        if self.relative_mse is not None and not several:
            yield "relative MSE", f"{self.relative_mse:.4f}   (Shannon bound {self.shannon_bound:.4f})"
            yield "above the bound", f"{self.gap_db:.2f} dB"
            yield "mean cosine", f"{self.mean_cosine:.4f}"
        for band in self.bands:
            yield f"tokens {band.first:,} to {band.last:,}", str(band)


def inspect(
    compact: PreTrainedModel,
    against: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    languages: Iterable[str] | None = None,
) -> Report:
    """Report the bytes of a compact model, and its fidelity to the dense model it was made from.

    Args:
        compact: a compact model.
        against: the dense model. Without it the dense bytes are counted in the compact model's dtype, and
            there is no fidelity.
        tokenizer: of both, which tells frequent tokens from rare ones, as for `compress()`: errors of either are told
            apart then.
        languages: whose words count for that; by default all that the vocabulary shows.
    """
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    words = _words(compact, against, tokenizer, languages)
    first_path = compact.input_table_path
    tables = [
        _inspect_table(compact, path, structure, against, words.readers if path == first_path and words else ())
        for path, structure in reported_tables(compact).items()
    ]
    source = compact.config.compact_source or {}
    first, code = tables[0], compact.config.code_that_reads_it()
    dense, stored = sum(table.dense_bytes for table in tables), sum(table.compact_bytes for table in tables)
    weights = sum(table.weights for table in tables)
    return Report(
        method=" and ".join(dict.fromkeys(table.method for table in tables)),
        dense_bytes=dense,
        compact_bytes=stored,
        memory_bytes=sum(table.memory_bytes for table in tables),
        ratio=dense / stored,
        byte_reduction=100 * (1 - stored / dense),
        parameter_reduction=100 * (1 - sum(table.floats for table in tables) / weights),
        bits_per_weight=8 * stored / weights,
        model_bytes=saved_bytes(compact),
        dense_model_bytes=dense + _other_bytes(compact),
        layers=inspect_layers(compact, against),
        code_files=len(code),
        code_bytes=sum(map(len, code.values())),
        evidence=source.get("evidence"),
        calibration=source.get("calibration"),
        other_tables={
            name: tensor.numel() * tensor.element_size() for name, tensor in dense_tables(compact, first.rows).items()
        },
        tables=tables,
        bands=words.errors.bands() if words else [],
        neighbours=words.neighbours() if words else [],
        **{name: getattr(first, name) for name in (*_OF_FIRST, *_FIDELITY)},
    )


def _words(
    compact: CompactModelMixin,
    against: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    languages: Iterable[str] | None,
) -> Words | None:
    """Return what is to be seen of the input table, if both its dense table and its tokens' frequencies are known."""
    if against is None or tokenizer is None:
        return None
    table, structure = find_input_table(against), compact.compact_embedding
    dense = table.module.weight.detach()
    counts = gather(against, table, tokenizer=tokenizer, languages=languages).counts
    if counts is None or dense.shape != (structure.num_embeddings, structure.embedding_dim):
        return None
    return Words(structure, dense, counts, tokenizer)


def reported_tables(compact: CompactModelMixin) -> dict[str, CompactEmbedding]:
    """Return the structures that stand for the input table and for a head, by their paths."""
    first = compact.input_table_path
    return {path: table for path, table in compact.compact_tables.items() if path == first or path.endswith(IN_HEAD)}


def _inspect_table(
    compact: CompactModelMixin,
    path: str,
    structure: CompactEmbedding,
    against: PreTrainedModel | None,
    readers: Iterable[RowReader],
) -> TableReport:
    """Report on one table, beside that of the dense model; readers see its rows, too."""
    rows, width = structure.num_embeddings, structure.embedding_dim
    name, table = "head" if path.endswith(IN_HEAD) else "input", None
    if against is not None:
        layer = against.get_output_embeddings() if name == "head" else against.get_input_embeddings()
        table = None if layer is None else layer.weight.detach()
        if table is None or table.shape != (rows, width):
            theirs = "no output head" if table is None else f"a table {tuple(table.shape)}"
            raise CompactConfigError(f"`against` has {theirs}, `compact` one of {(rows, width)}: its `{path}`.")
    collisions, fidelity = Collisions(), None if table is None else Fidelity(table)
    read_rows(structure, [collisions, *([] if fidelity is None else [fidelity]), *readers])
    return TableReport(
        table=name,
        path=path,
        method=structure.options.method,
        options=structure.to_dict(),
        rows=rows,
        width=width,
        dense_bytes=rows * width * (structure.dtype if table is None else table.dtype).itemsize,
        compact_bytes=structure.nbytes,
        memory_bytes=resident_bytes(structure),
        floats=sum(parameter.numel() for parameter in structure.parameters()),
        private_rows=structure.layout.private_rows,
        collisions=collisions.count,
        **({} if fidelity is None else fidelity.figures(structure.nbytes)),
    )


def dense_tables(model: PreTrainedModel, rows: int) -> dict[str, Tensor]:
    """Return the dense matrices of a compact model with a row for each token: untied heads, per-layer tables."""
    homes = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, CompactEmbedding))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.shape[0] == rows and not name.startswith(homes)
    }


def saved_bytes(compact: CompactModelMixin) -> int:
    """Return the bytes of all tensors of a saved model, each tied tensor once."""
    dtypes, tables = stored_dtypes(compact), compact.compact_tables
    homes = tuple(f"{path}." for path in tables)
    others = {name: tensor for name, tensor in _saved_tensors(compact).items() if not name.startswith(homes)}
    stored = sum(table.nbytes for table in tables.values())
    return stored + sum(other.numel() * dtypes.get(name, other.dtype).itemsize for name, other in others.items())


def _other_bytes(compact: CompactModelMixin) -> int:
    """Return the bytes that all but the tables would take in the model's own type, each tied tensor once."""
    tables = tuple(f"{path}." for path in compact.compact_tables)
    layers = compact_layers(compact)
    inside = (*tables, *(f"{path}.{name}" for path in layers for name in ("codes", "scales")))
    others = (tensor for name, tensor in _saved_tensors(compact).items() if not name.startswith(inside))
    return sum(map(dense_layer_bytes, layers.values())) + sum(other.numel() * other.element_size() for other in others)


def _saved_tensors(compact: CompactModelMixin) -> dict[str, Tensor]:
    """Return the tensors that are saved, each once."""
    ignored, seen = ignored_on_save(compact), set()
    found = {}
    for name, tensor in compact.state_dict(keep_vars=True).items():
        if name not in ignored and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found
