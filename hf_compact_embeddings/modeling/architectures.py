"""Where a model keeps its tables and what is tied to them, found in the model and not by its name.

A model has a set of compact tables. `config.compact_embeddings` holds what is stored of each, by the path of its
module; before a model is built, `INPUT_TABLE` stands for the path of its input table, `HEAD_TABLE` for that of its
untied head.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .errors import CheckpointError, CompactConfigError, UnsupportedArchitectureError, config_error
from .options import StructureConfig, StructureLayout
from .structure import CompactEmbedding, structure_class_of
from .tied import CompactHead, TiedEmbedding, TiedHead
from .transformers_internals import ignore_unexpected, set_tied_weights_keys

INPUT_TABLE, HEAD_TABLE = "input", "head"
# Where the table of an untied head lies in it.
IN_HEAD = ".table"
# In a configuration, whatever else it says of ties: T5's always claims one.
UNTIED_HEAD = "compact_untied_head"
_STORED = ("method", "format_version", "options", "layout")
# What a checkpoint says of its tables: the options and, once there are values, the layout of each, by path.
StoredTables = dict[str, tuple[StructureConfig, StructureLayout | None]]
# Beside tables, by name in the configuration.
FURTHER_PARTS: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class InputTable:
    """A native input table: the module, where it stands, and the modules whose weight is tied to it."""

    module: nn.Embedding
    paths: tuple[str, ...]
    tied_paths: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What looked-up rows are multiplied by."""
        return embedding_scale(self.module)


def embedding_scale(module: nn.Embedding | nn.Linear) -> float:
    """Return the factor of a scaled embedding, 1.0 for a plain one and for an output layer."""
    if type(module) is nn.Embedding or isinstance(module, nn.Linear):
        return 1.0
    # Embeddings with a buffer `embed_scale` also keep the number, which exists on the meta device too.
    scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    owned = [name for name, _ in module.named_parameters()]
    if isinstance(scale, int | float) and owned == ["weight"]:
        return float(scale)
    raise UnsupportedArchitectureError(
        f"The input table is a {type(module).__name__}: looked for a plain nn.Embedding, or one whose only "
        "addition is a scale (`embed_scale` or `scalar_embed_scale`)."
    )


def find_input_table(model: PreTrainedModel) -> InputTable:
    """Find the native input table of a model and everything that is tied to it."""
    name = type(model).__name__
    try:
        module = model.get_input_embeddings()
    except NotImplementedError as error:
        raise UnsupportedArchitectureError(
            f"{name} has no `get_input_embeddings()`: looked for an input table of type nn.Embedding."
        ) from error
    if not isinstance(module, nn.Embedding):
        raise UnsupportedArchitectureError(
            f"The input layer of {name} is a {type(module).__name__}: looked for an nn.Embedding, plain or scaled."
        )
    embedding_scale(module)
    modules = list(model.named_modules(remove_duplicate=False))
    paths = tuple(path for path, candidate in modules if candidate is module)
    tied = _tied_parameters(model, {f"{path}.weight" for path in paths})
    tied_paths = tuple(parameter.removesuffix(".weight") for parameter in sorted(tied))
    for path in tied_paths:
        if not isinstance(model.get_submodule(path), nn.Embedding | nn.Linear):
            raise UnsupportedArchitectureError(
                f"{name} ties its input table to `{path}`, a {type(model.get_submodule(path)).__name__}: "
                "looked for nn.Embedding and nn.Linear."
            )
    return InputTable(module, paths, tied_paths)


def find_head(model: PreTrainedModel) -> str | None:
    """Return the path of a model's output layer, tied or not; None if there is none."""
    layer = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is layer), None)


def _tied_parameters(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Return the parameters that the model's tie map connects to `names`, without `names`."""
    ties = model.all_tied_weights_keys
    group = set(names)
    while True:
        grown = group | {end for tie in ties.items() if group & set(tie) for end in tie}
        if grown == group:
            break
        group = grown
    modules = dict(model.named_modules(remove_duplicate=False))
    # A tie names a parameter; several paths may lead to the module that is replaced already.
    table = {modules[name.removesuffix(".weight")] for name in names}
    return {name for name in group if modules.get(name.removesuffix(".weight")) not in table}


def read_stored_tables(stored: Any) -> StoredTables:
    """Read `config.compact_embeddings`, possibly written by another release."""
    if not isinstance(stored, dict):
        raise CheckpointError(
            f"`compact_embeddings` is {stored!r}, but a compact model needs the `to_dict()` of a structure by the path "
            "of each table: this configuration belongs to a dense model. Use `hf_compact_embeddings.compress()` to "
            "make a compact model of it."
        )
    return {str(path): _read_stored_table(str(path), table) for path, table in stored.items()}


def _read_stored_table(path: str, stored: Any) -> tuple[StructureConfig, StructureLayout | None]:
    try:
        known_keys = "a table has " + ", ".join(map(repr, _STORED))
        if not isinstance(stored, dict):
            raise config_error(path, stored, known_keys)
        structure_class = structure_class_of(stored.get("method"))
        unknown = sorted(map(str, set(stored) - set(_STORED)))
        if unknown:
            raise config_error(path, unknown, known_keys)
        known, version = structure_class.options_class.format_version, stored.get("format_version")
        if type(version) is not int or not 1 <= version <= known:
            raise config_error(
                "format_version",
                version,
                f"this code reads versions 1 to {known}: the checkpoint was written by a newer release, or "
                "`compact_embeddings` was edited by hand",
            )
        options = structure_class.options_class.from_json(stored.get("options"), "options")
        layout = stored.get("layout")
        return options, None if layout is None else structure_class.layout_class.from_json(layout, "layout")
    except CompactConfigError as error:
        raise CheckpointError(f"`compact_embeddings` in the model's configuration, table {path!r}: {error}") from error


def install_structures(model: PreTrainedModel, tables: StoredTables) -> None:
    """Put a structure in the place of each table, and parameter-free modules where the input table was tied."""
    heads = {path: stored for path, stored in tables.items() if path == HEAD_TABLE or path.endswith(IN_HEAD)}
    others = {path: stored for path, stored in tables.items() if path not in heads}
    _install_heads(model, heads)
    # A generic head has built its inner model through the compact class.
    if others and not isinstance(model.get_input_embeddings(), CompactEmbedding):
        _install_input_table(model, others)
    _drop_ties(model)


def _install_heads(model: PreTrainedModel, tables: StoredTables) -> None:
    """Give the output layer a table of its own, which unties it; models without that layer leave the table out."""
    path, untied = find_head(model), getattr(model.config, UNTIED_HEAD, False)
    for home, stored in tables.items():
        if path is not None and (home == HEAD_TABLE or is_same_place(path + IN_HEAD, home)):
            native: Any = model.get_submodule(path)
            model.set_submodule(path, CompactHead(_build(stored, native, home), native))
            untied = True
        else:
            ignore_unexpected(model, rf"(^|\.){re.escape(home)}\.")
    if untied:
        ties = model.all_tied_weights_keys.items()
        set_tied_weights_keys(model, {one: other for one, other in ties if f"{path}.weight" not in (one, other)})


def _install_input_table(model: PreTrainedModel, tables: StoredTables) -> None:
    table = find_input_table(model)
    home = _stored_path_of(table.paths[0], tables)
    structure = _build(tables[home], table.module, home)
    for path in table.paths:
        model.set_submodule(path, structure)
        for other in table.paths:
            if other != path:
                model.set_submodule(other, TiedEmbedding(model, table.scale))
        if model.get_input_embeddings() is structure:
            break
    for path in table.tied_paths:
        native = model.get_submodule(path)
        if isinstance(native, nn.Embedding):
            model.set_submodule(path, TiedEmbedding(model, embedding_scale(native)))
        else:
            model.set_submodule(path, TiedHead(model, native))
    _install_further_tables(model, {path: stored for path, stored in tables.items() if path != home})


def _install_further_tables(model: PreTrainedModel, tables: StoredTables) -> None:
    """Put structures in the place of further tables; those of a head that this model does not have are left out."""
    embeddings = {path: module for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for home, stored in tables.items():
        for path, module in embeddings.items():
            if is_same_place(path, home):
                model.set_submodule(path, _build(stored, module, home))


def _build(stored: tuple[StructureConfig, StructureLayout | None], module: Any, path: str) -> CompactEmbedding:
    """Return the structure for a native table or output layer, without values; without a layout, for a random start."""
    options, layout = stored
    rows, width = module.weight.shape
    structure_class = structure_class_of(options.method)
    try:
        sizes = structure_class.random_layout(options, rows, width) if layout is None else layout
        padding = getattr(module, "padding_idx", None)
        return structure_class(options, sizes, rows, width, padding, embedding_scale(module))
    except CompactConfigError as error:
        if layout is None:
            raise
        raise CheckpointError(f"`compact_embeddings` in the model's configuration, table {path!r}: {error}") from error


def _stored_path_of(path: str, tables: StoredTables) -> str:
    """Return under which path a table is stored: a base model's is that of a model with a head without the first part.

    Of several, the one that ends like it for the longest.
    """
    if INPUT_TABLE in tables:
        return INPUT_TABLE
    found = max(tables, key=lambda stored: _shared_end(path, stored))
    if not _shared_end(path, found):
        raise CheckpointError(
            f"`compact_embeddings` has tables at {', '.join(map(repr, tables))}, but the model's input table is at "
            f"{path!r}."
        )
    return found


def is_same_place(one: str, other: str) -> bool:
    """Tell whether two paths are the same, but for what a model with a head puts before those of its base."""
    return _shared_end(one, other) == min(one.count("."), other.count(".")) + 1


def _shared_end(one: str, other: str) -> int:
    """Return how many parts two paths share at their ends."""
    shared = 0
    for left, right in zip(one.split(".")[::-1], other.split(".")[::-1], strict=False):
        if left != right:
            break
        shared += 1
    return shared


def _drop_ties(model: PreTrainedModel) -> None:
    """Forget the ties whose parameters are gone, in the model and in the models inside it."""
    for submodel in model.modules():
        if not isinstance(submodel, PreTrainedModel):
            continue
        present = {name for name, _ in submodel.named_parameters(remove_duplicate=False)}
        ties = {
            target: source
            for target, source in submodel.all_tied_weights_keys.items()
            if target in present and source in present
        }
        set_tied_weights_keys(submodel, ties)
