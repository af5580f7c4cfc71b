"""All that this package uses of Transformers' private parts, in one file, with the versions that it was seen in.

Also what the Auto classes know about a native architecture: its heads, by name, without importing it.

A private name may be gone in any release. No other file uses one (a test reads them all), so this is the one file
to mend then. 5.11 is the lowest version that is supported, 5.24 the newest that the tests ran with.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AddedToken, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizer
from transformers.initialization import meta_device_safe_creation_ops, zeros_  # noqa: F401  # 5.11, 5.24
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES  # 5.11, 5.24
from transformers.models.auto.modeling_auto import (  # noqa: F401  # 5.11, 5.24
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, TOKENIZER_MAPPING_NAMES  # noqa: F401  # 5.11, 5.24
from transformers.utils import cached_file

if TYPE_CHECKING:
    # Importing it takes seconds.
    from transformers import Trainer

# Every entry of a checkpoint's `auto_map` names it.
_MODULE = "modeling_compact"

# Private parts that classes of this package override, where Transformers reads them: renamed there, they would never
# be read again, without a word. A test looks each of them up in Transformers. All were seen in 5.11 and in 5.24.
OVERRIDDEN = {
    "PreTrainedModel": ("_get_resized_embeddings", "_get_resized_lm_head"),
    "PreTrainedTokenizer": (
        "_auto_class",
        "_convert_id_to_token",
        "_convert_token_to_id",
        "_encode_plus",
        "_pad",
        "_update_trie",
    ),
    "Trainer": ("_load_from_checkpoint", "_save", "_save_checkpoint"),
}


def lazy_mappings() -> dict[str, Any]:
    """Return the lazy mapping from configuration class to model class of each Auto class for models, by its name."""
    found = {}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None)  # `_BaseAutoModelClass`, 5.11, 5.24
        if name.startswith("AutoModel") and mapping is not None:
            found[name] = mapping
    return found


def model_mappings() -> dict[str, MutableMapping[str, Any]]:
    """Return, for each Auto class, its mapping from model type to class name (the live dictionaries)."""
    # `_LazyAutoMapping._model_mapping`, 5.11, 5.24: another attribute than that of the Auto class.
    return {name: mapping._model_mapping for name, mapping in lazy_mappings().items()}


def registered_model_class(config: type[PreTrainedConfig]) -> Any:
    """Return the class that `AutoModel` has for a class of configurations, or None."""
    mapping = AutoModel._model_mapping  # 5.11, 5.24
    return mapping[config] if config in mapping else None


def register_config_names(names: dict[str, str], module_name: str, module: ModuleType) -> None:
    """Let `AutoConfig` find configuration classes, by model type and name, in a module that it calls by this name."""
    for model_type, name in names.items():
        CONFIG_MAPPING_NAMES[model_type] = name
        configuration_auto.SPECIAL_MODEL_TYPE_TO_MODULE_NAME[model_type] = module_name  # 5.11, 5.24
    CONFIG_MAPPING._modules[module_name] = module  # `_LazyConfigMapping`, 5.11, 5.24


def register_model_names(mapping: Any, config_names: dict[str, str], module_name: str, module: ModuleType) -> None:
    """Let a lazy mapping find what its names say about these configurations in that module."""
    mapping._modules[module_name] = module  # `_LazyAutoMapping`, 5.11, 5.24, as is the next
    mapping._reverse_config_mapping.update({name: model_type for model_type, name in config_names.items()})


def mark_as_initialized(module: nn.Module) -> None:
    """Keep `initialize_weights()` from starting a module anew."""
    module._is_hf_initialized = True  # type: ignore[assignment]  # 5.11, 5.24


def set_tied_weights_keys(model: PreTrainedModel, ties: dict[str, str]) -> None:
    """Say which parameters of a model, and of the models inside it, are tied: each to its source."""
    model.all_tied_weights_keys = ties
    # Read again by `tie_weights()`, which also expands patterns: those are expanded already. 5.11, 5.24.
    model._tied_weights_keys = None if model._tied_weights_keys is None else ties


def ignored_on_save(model: PreTrainedModel) -> set[str]:
    """Return the names of tensors that saving leaves out."""
    return set(model._keys_to_ignore_on_save or ())  # 5.11, 5.24


def commit_of(config: PreTrainedConfig) -> str | None:
    """Return the commit on the Hub that a configuration was loaded from, if it is known."""
    return getattr(config, "_commit_hash", None)  # 5.11, 5.24


def set_commit(config: PreTrainedConfig, commit: str | None) -> None:
    """Note the commit on the Hub that a configuration was loaded from."""
    config._commit_hash = commit  # 5.11, 5.24


def attention_of(config: PreTrainedConfig) -> str | None:
    """Return the implementation of attention that a configuration asks for."""
    return config._attn_implementation  # 5.11, 5.24


def set_attention(config: PreTrainedConfig, implementation: str | None) -> None:
    """Ask for an implementation of attention."""
    config._attn_implementation = implementation  # 5.11, 5.24


def cached_file_or_none(source: str, name: str, commit: str | None = None, **options: Any) -> str | None:
    """Return the path of a file of a folder or the Hub, at a commit if known, or None where it is not in reach."""
    options["_commit_hash"] = commit  # 5.11, 5.24
    options |= {
        f"_raise_exceptions_for_{what}": False
        for what in ("gated_repo", "missing_entries", "connection_errors")  # 5.11, 5.24
    }
    return cached_file(source, name, **options)


def checkpoint_function(layer: nn.Module) -> Any:
    """Return what runs a `GradientCheckpointingLayer` that is checkpointed, or None."""
    return getattr(layer, "_gradient_checkpointing_func", None)  # 5.11, 5.24


def set_checkpoint_function(layer: nn.Module, function: Any) -> None:
    """Replace what runs a `GradientCheckpointingLayer` that is checkpointed."""
    layer._gradient_checkpointing_func = function  # 5.11, 5.24


def prepared_inputs(trainer: Trainer, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a batch on the device and in the dtype that a trainer's model takes."""
    return trainer._prepare_inputs(inputs)  # 5.11, 5.24


def set_built_in_tokens(tokenizer: PreTrainedTokenizer, tokens: dict[int, AddedToken]) -> None:
    """Give a tokenizer the tokens that it always has, before its `__init__` adds others behind them."""
    tokenizer._added_tokens_decoder = tokens  # 5.11, 5.24


def warn_of_length(tokenizer: PreTrainedTokenizer, ids: list[int], max_length: int | None, verbose: bool) -> None:
    """Warn, once, of a row that is longer than the model takes."""
    tokenizer._eventual_warn_about_too_long_sequence(ids, max_length, verbose)  # 5.11, 5.24


def heads_of(model_type: str) -> dict[str, str]:
    """Return the class name behind each Auto class for a native model type."""
    heads = {}
    for auto_class, names in model_mappings().items():
        name = names.get(model_type)
        if name is not None:
            heads[auto_class] = name if isinstance(name, str) else name[0]
    return heads


def native_config_class(compact: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Return the native class that a compact config class was made from."""
    return next(base for base in compact.__mro__ if base.__module__.startswith("transformers."))


def auto_map_of(compact_config: type[PreTrainedConfig], prefix: str) -> dict[str, str]:
    """Return the `auto_map` of a compact config class, with every head that the Auto classes know."""
    heads = heads_of(native_config_class(compact_config).model_type)
    entries = {"AutoConfig": compact_config.__name__}
    entries |= {auto_class: prefix + name for auto_class, name in heads.items()}
    return {auto_class: f"{_MODULE}.{name}" for auto_class, name in entries.items()}


def primary_auto_class(native: type[PreTrainedModel]) -> str:
    """Return an Auto class that leads to a native model class."""
    heads = heads_of(native.config_class.model_type)
    return next((auto_class for auto_class, name in heads.items() if name == native.__name__), "AutoModel")
