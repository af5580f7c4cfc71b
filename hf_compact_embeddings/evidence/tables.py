"""The tables of a model that can be made compact: its input table, and an output head that is not tied to it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from ..modeling.architectures import InputTable, find_head, find_input_table
from ..modeling.errors import CompactConfigError, UnsupportedArchitectureError, config_error
from ..modeling.options import parse_size

# Which tables are made compact.
Tables = Literal["input", "head", "all"]


@dataclasses.dataclass(frozen=True)
class HeadTable:
    """An output head that is not tied to the input table: the module, and where it stands."""

    module: nn.Linear
    path: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the module stands, as of an input table."""
        return (self.path,)

    @property
    def tied_paths(self) -> tuple[str, ...]:
        """Nothing is tied to it."""
        return ()

    @property
    def scale(self) -> float:
        """Scores are those of the rows as they are."""
        return 1.0


Table = InputTable | HeadTable


def find_tables(model: PreTrainedModel, tables: Tables) -> list[Table]:
    """Return the tables that are asked for, the input table first; raise if there is none such."""
    if tables not in get_args(Tables):
        raise config_error("tables", tables, f"it must be {', '.join(map(repr, get_args(Tables)))}")
    table = find_input_table(model)
    if tables == "input":
        return [table]
    path = find_head(model)
    if path is None or path in table.tied_paths:
        if tables == "all":
            return [table]
        if path is not None:
            raise CompactConfigError(
                f"`tables` is 'head', but {type(model).__name__} has one table, which its output head `{path}` shares: "
                "leave `tables` out, and both become compact."
            )
        raise UnsupportedArchitectureError(
            f"`tables` is 'head', but {type(model).__name__} has no output head: looked for an nn.Linear that "
            "`get_output_embeddings()` gives."
        )
    head = HeadTable(_require_linear(model, path, len(table.module.weight)), path)
    return [head] if tables == "head" else [table, head]


def _require_linear(model: PreTrainedModel, path: str, rows: int) -> nn.Linear:
    """Return an output head that can be made compact."""
    module = model.get_submodule(path)
    if not isinstance(module, nn.Linear) or len(module.weight) != rows:
        size = f" with {len(module.weight):,} rows" if isinstance(module, nn.Linear) else ""
        raise UnsupportedArchitectureError(
            f"The output head `{path}` of {type(model).__name__} is a {type(module).__name__}{size}: looked for an "
            f'nn.Linear with {rows:,} rows, as the input table has. With `tables="input"` it stays as it is.'
        )
    weight = f"{path}.weight"
    tied_to = {end for tie in model.all_tied_weights_keys.items() if weight in tie for end in tie} - {weight}
    if tied_to:
        raise UnsupportedArchitectureError(
            f"The output head `{path}` of {type(model).__name__} is tied to {', '.join(sorted(tied_to))}: looked for a "
            'head that is tied to the input table or to nothing. With `tables="input"` it stays as it is.'
        )
    return module


def padding_of(table: Table) -> int | None:
    """Return the padding row; an output head has none."""
    return table.module.padding_idx if isinstance(table, InputTable) else None


def share_of(size: Any, tables: list[Table], table: Table) -> Any:
    """Return which part of the bytes that several tables may take together is one table's: by their values."""
    if len(tables) == 1:
        return size
    return parse_size(size) * table.module.weight.numel() // sum(one.module.weight.numel() for one in tables)
