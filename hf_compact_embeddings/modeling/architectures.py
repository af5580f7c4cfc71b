"""Where a model keeps its input table and what is tied to it, found in the model and not by its name."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import UnsupportedArchitectureError
from .structure import CompactEmbedding, StructureConfig, structure_class_of
from .tied import TiedEmbedding, TiedHead
from .transformers_internals import set_tied_weights_keys


@dataclasses.dataclass(frozen=True)
class InputTable:
    """A native input table: the module, where it stands, and the modules whose weight is tied to it.

    `scores` tells whether one of them is an output layer.
    """

    module: nn.Embedding
    paths: tuple[str, ...]
    tied_paths: tuple[str, ...]
    scores: bool

    @property
    def scale(self) -> float:
        """What looked-up rows are multiplied by."""
        return embedding_scale(self.module)


def embedding_scale(module: nn.Embedding) -> float:
    """Return the factor of a scaled embedding, 1.0 for a plain one."""
    if type(module) is nn.Embedding:
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
    scores = any(isinstance(model.get_submodule(path), nn.Linear) for path in tied_paths)
    return InputTable(module, paths, tied_paths, scores)


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


def install_structure(model: PreTrainedModel, config: StructureConfig) -> CompactEmbedding:
    """Put a structure in the place of the model's input table, and parameter-free modules where it was tied."""
    table = find_input_table(model)
    structure = structure_class_of(config)(
        config, table.module.num_embeddings, table.module.embedding_dim, table.module.padding_idx, table.scale
    )
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
            head = TiedHead(model, native.out_features, native.bias is not None)
            model.set_submodule(path, head)
    _drop_ties(model)
    structure.require_fit(model)
    return structure


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


def other_large_tables(model: PreTrainedModel, structure: CompactEmbedding) -> dict[str, Tensor]:
    """Return further dense matrices with a row for each token: untied heads, per-layer tables."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.shape[0] == structure.num_embeddings:
            found[name] = parameter
    return {name: tensor for name, tensor in found.items() if not _inside(model, name, structure)}


def _inside(model: PreTrainedModel, name: str, structure: CompactEmbedding) -> bool:
    path = next(path for path, module in model.named_modules() if module is structure)
    return name.startswith(f"{path}.")
