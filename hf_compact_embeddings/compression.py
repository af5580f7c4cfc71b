"""compress() and decompress(): a model in, a model out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import load_dense
from .exact_rows import exact_rows
from .fitting import FitSource, fit_structure, method_of
from .modeling.architectures import InputTable, find_input_table
from .modeling.errors import CompactConfigError, UnsupportedArchitectureError
from .modeling.modeling_compact import CompactModelMixin, config_class, model_class, native_model_class
from .modeling.options import StructureConfig
from .modeling.structure import CompactEmbedding, make_config
from .modeling.transformers_internals import attention_of, set_attention
from .origin import origin_of
from .planning import plan
from .sensitivity import sensitivity_metric
from .token_statistics import contextual_states, token_weights

_PLANNED_OPTIONS = ("ratio", "max_bytes", "bits_per_weight", "private_rows")


def compress(
    model: PreTrainedModel | str | Path,
    method: str | StructureConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_counts: Tensor | Literal["tokenizer"] | None = None,
    texts: Iterable[str] | None = None,
    auto_class: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Return a compact copy of a model; the model itself is not changed and shares no memory with the copy.

    Args:
        model: a Transformers model, or a Hub id or folder of one.
        method: a method's name, with its options as keywords; or a configuration; or None, to let `plan()` choose
            within `ratio=`, `max_bytes=` or `bits_per_weight=`.
        tokenizer: the model's tokenizer. Its special tokens are kept as exact rows.
        token_counts: how often each token occurs (V,); frequent rows are then fitted more closely. "tokenizer":
            as far as the tokenizer itself tells, by its scores or by the order of its merges or vocabulary.
        texts: texts to count tokens in instead, and to read contextual states from where a method asks.
        auto_class: the Auto class to load a Hub id or folder with; by default the class that its
            configuration names.
        seed: of all random choices in the fit.
        device: where to fit; by default a GPU where there is one.
        options: fields of the method's configuration; where `plan()` chooses, the budget and `private_rows`.
    """
    if isinstance(model, str | Path):
        model = load_dense(model, auto_class)
    if isinstance(model, CompactModelMixin):
        raise CompactConfigError(f"`model` is a {type(model).__name__}, which is compact already.")
    config = None if method is None else _method_config(method, options)
    compact_class = _compact_class(model)
    table = find_input_table(model)
    _require_true_ties(model, table)
    texts = _reusable(texts)
    if texts is not None and tokenizer is None:
        raise CompactConfigError("`tokenizer` is missing: `texts` cannot be read without it.")
    counts = token_weights(token_counts, texts, tokenizer, table.module.num_embeddings)
    if config is None:
        config = _planned(model, tokenizer, counts, seed, options)
    features = None
    if getattr(config, "features", "table") == "contextual" and texts is not None and tokenizer is not None:
        features = contextual_states(texts, tokenizer, model)
    private_ids = exact_rows(config, table, tokenizer, counts)
    source = FitSource(
        table=table.module.weight.detach(),
        counts=counts,
        features=features,
        metric=_metric(config, texts, tokenizer, model),
        tied=table.scores,
        token_strings=_token_strings(config, tokenizer, table),
        private_ids=private_ids,
        padding_idx=table.module.padding_idx,
        scale=table.scale,
        seed=seed,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )
    structure = fit_structure(config, source)
    compact = _assemble(model, compact_class, table, structure)
    compact.config.compact_source = origin_of(
        model,
        config,
        seed,
        tokenizer=tokenizer is not None,
        texts=texts is not None,
        token_counts=token_counts if isinstance(token_counts, str) else token_counts is not None,
    )
    return compact


def _planned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    counts: Tensor | None,
    seed: int,
    options: dict[str, Any],
) -> StructureConfig:
    """Let `plan()` choose."""
    wrong = [name for name in options if name not in _PLANNED_OPTIONS]
    if wrong:
        raise CompactConfigError(
            f"`{wrong[0]}` cannot be given without a method, only {', '.join(map(repr, _PLANNED_OPTIONS))}: name the "
            "method, or take a configuration of `plan()` and set it there."
        )
    return plan(model, tokenizer=tokenizer, token_counts=counts, seed=seed, **options)[0].config


def _method_config(method: str | StructureConfig, options: dict[str, Any]) -> StructureConfig:
    if isinstance(method, str):
        return make_config(method, **options)
    if options:
        raise CompactConfigError(f"`{next(iter(options))}` cannot be given beside a configuration: set it there.")
    return method


def _metric(
    config: StructureConfig,
    texts: Iterable[str] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    model: PreTrainedModel,
) -> Tensor | None:
    """Measure what errors cost, where the method asks and texts are given."""
    if getattr(config, "metric", "plain") != "sensitivity" or texts is None or tokenizer is None:
        return None
    return sensitivity_metric(texts, tokenizer, model)


def _compact_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    native = type(model)
    if getattr(transformers, native.__name__, None) is not native:
        raise UnsupportedArchitectureError(
            f"{native.__name__} is no model class of Transformers: looked for it as `transformers.{native.__name__}`."
        )
    return model_class(native)


def _require_true_ties(model: PreTrainedModel, table: InputTable) -> None:
    weight = table.module.weight
    for path in table.tied_paths:
        other = model.get_submodule(path).weight
        if other is not weight and not torch.equal(other, weight):
            raise UnsupportedArchitectureError(
                f"`{path}` is tied to the input table by the configuration, but holds other values: "
                "set `config.tie_word_embeddings = False`, save and load the model, and try again."
            )


def _token_strings(
    config: StructureConfig, tokenizer: PreTrainedTokenizerBase | None, table: InputTable
) -> list[str] | None:
    if "token_strings" not in method_of(config).needs(config) or tokenizer is None:
        return None
    # Tables often have more rows than the tokenizer has tokens.
    known = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    return [known.get(row, f"[unused row {row}]") for row in range(table.module.num_embeddings)]


def _reusable(texts: Iterable[str] | None) -> Iterable[str] | None:
    """Texts may be read twice, so an iterator is drawn into a list."""
    return list(texts) if texts is not None and iter(texts) is texts else texts


def _assemble(
    model: PreTrainedModel,
    compact_class: type[PreTrainedModel],
    table: InputTable,
    structure: CompactEmbedding,
) -> PreTrainedModel:
    """Build the compact model from the structure and copies of the model's other weights."""
    dropped = {f"{path}.weight" for path in (*table.paths, *table.tied_paths)}
    state = {key: value.detach().clone() for key, value in model.state_dict().items() if key not in dropped}
    config = _converted_config(model.config, config_class(type(model.config)))
    config.compact_embeddings = {table.paths[0]: structure.to_dict()}
    with torch.device("meta"):
        home = compact_class(config).input_table_path
    dtype = table.module.weight.dtype
    for key, value in structure.state_dict().items():
        state[f"{home}.{key}"] = value.to(dtype) if value.is_floating_point() else value
    return _load(compact_class, config, state, model)


def _converted_config(config: PreTrainedConfig, target: type[PreTrainedConfig]) -> Any:
    """Copy a configuration into another class of the same architecture."""
    left_out = ("model_type", "auto_map", "architectures", "compact_embeddings", "compact_code", "compact_source")
    fields = {name: value for name, value in copy.deepcopy(config.to_dict()).items() if name not in left_out}
    converted = target.from_dict(fields)
    set_attention(converted, attention_of(config))
    return converted


def _load(
    target: type[PreTrainedModel], config: Any, state: dict[str, Tensor], source: PreTrainedModel
) -> PreTrainedModel:
    """Load a state the way a checkpoint is loaded, and carry over what a checkpoint does not hold."""
    result = target.from_pretrained(None, config=config, state_dict=state, dtype=source.dtype)
    result.to(source.device)
    result.train(source.training)
    result.name_or_path = result.config.name_or_path = source.config.name_or_path
    if source.can_generate():
        result.generation_config = copy.deepcopy(source.generation_config)
    trainable = {name: parameter.requires_grad for name, parameter in source.named_parameters()}
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
    return result


def decompress(compact: PreTrainedModel) -> PreTrainedModel:
    """Return the native model again, with the decoded rows as its dense table."""
    if not isinstance(compact, CompactModelMixin):
        raise CompactConfigError(f"`compact` is a {type(compact).__name__}, which is not compact.")
    native = native_model_class(type(compact))
    structure = compact.compact_embedding
    home = compact.input_table_path
    state = {key: value.detach().clone() for key, value in compact.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.startswith(f"{home}.")}
    with torch.no_grad():
        state[f"{home}.weight"] = structure.dense()
    config = _converted_config(compact.config, native.config_class)
    return _load(native, config, state, compact)
