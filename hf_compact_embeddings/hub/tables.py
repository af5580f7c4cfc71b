"""What a card says of the compact tables: one, or the input table and that of an output head that is not tied."""

from __future__ import annotations

from typing import Any

from ..evaluation.layers import LayersReport
from ..evaluation.report import Report, TableReport

_NAMES = {"input": "embedding table", "head": "output head"}


def methods_of(report: Report) -> list[str]:
    """Return the names of the tables' methods, each once."""
    return list(dict.fromkeys(table.method for table in report.tables))


def facts_of_tables(report: Report) -> dict[str, Any]:
    """Return what the card's template needs to know of the tables."""
    tables = report.tables
    layers = report.layers
    return {
        "what": " and ".join(_NAMES[table.table] for table in tables).replace("embedding", "token-embedding"),
        "together": size_row("", report.dense_bytes, report.compact_bytes),
        "sizes": [
            *(size_row(_NAMES[table.table], table.dense_bytes, table.compact_bytes) for table in tables),
            *([size_row("linear layers", layers.dense_bytes, layers.compact_bytes)] if layers and layers.count else []),
            size_row("whole model", report.dense_model_bytes, report.model_bytes),
        ],
        "private_rows": f"{sum(table.private_rows for table in tables):,}",
        "shape": _shape(tables),
        "fidelity": [line for table in tables for line in _fidelity(table, len(tables) > 1)],
        "collisions": ", ".join(_collisions(table, len(tables) > 1) for table in tables if table.collisions),
    }


def layers_name(layers: LayersReport) -> str:
    """Return the type that linear layers are stored as."""
    return layers.codes if layers.count else layers.floats


def layers_in_words(layers: LayersReport | None) -> str:
    """Say how all but the tables is stored, where that is not as it was."""
    if layers is None:
        return ""
    if not layers.count:
        return f" They are stored as {layers.floats}."
    scales = "row" if layers.codes == "int8" else "32 of them"
    return (
        f" The weights of {layers.count} linear layers are {layers.codes} codes, with a scale for each {scales}, which "
        f"are decoded when the model runs and are not trained any more; all other floats are stored as {layers.floats}."
    )


def size_row(name: str, dense: int, compact: int) -> dict[str, str]:
    """Return a row of the card's table of sizes."""
    return {
        "name": name,
        "dense": in_bytes(dense),
        "compact": in_bytes(compact),
        "ratio": f"{dense / compact:.1f}x smaller",
    }


def in_bytes(count: int) -> str:
    """Return a size as people write it."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} bytes"


def _shape(tables: list[TableReport]) -> str:
    sizes = dict.fromkeys(f"{table.rows:,} rows of {table.width:,}" for table in tables)
    each = " each" if len(tables) > len(sizes) else ""
    return f"of the table{'s' if len(tables) > 1 else ''} ({' and '.join(sizes)}{each})"


def _fidelity(table: TableReport, named: bool) -> list[tuple[str, str]]:
    """Return the lines on a table, with its name where there are several."""
    if table.relative_mse is None or table.shannon_bound is None:
        return []
    lines = [
        ("relative mean squared error", f"{table.relative_mse:.4f}"),
        ("the least that a Gaussian source allows at this size", f"{table.shannon_bound:.4f}"),
        ("distance to that", f"{table.gap_db:.2f} dB"),
        ("mean cosine of the rows", f"{table.mean_cosine:.4f}"),
        ("rows with the same vector as an earlier one", f"{table.collisions:,} of {table.rows:,}"),
    ]
    return [(f"{_NAMES[table.table]}: {name}", value) for name, value in lines] if named else lines


def _collisions(table: TableReport, named: bool) -> str:
    return f"{table.collisions:,}" + (f" ({_NAMES[table.table]})" if named else "")
