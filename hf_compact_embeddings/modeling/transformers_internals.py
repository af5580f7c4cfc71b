"""What a compact model uses of Transformers' private parts, with the versions that it was seen in.

Also what the Auto classes know about a native architecture: its heads, by name, without importing it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops, zeros_  # noqa: F401  # 5.11, 5.24
from transformers.models.auto import modeling_auto  # 5.11, 5.24
from transformers.utils import cached_file


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


def mark_as_initialized(module: nn.Module) -> None:
    """Keep `initialize_weights()` from starting a module anew."""
    module._is_hf_initialized = True  # type: ignore[assignment]  # 5.11, 5.24


def set_tied_weights_keys(model: PreTrainedModel, ties: dict[str, str]) -> None:
    """Say which parameters of a model, and of the models inside it, are tied: each to its source."""
    model.all_tied_weights_keys = ties
    # Read again by `tie_weights()`, which also expands patterns: those are expanded already. 5.11, 5.24.
    model._tied_weights_keys = None if model._tied_weights_keys is None else ties


def ignore_unexpected(model: PreTrainedModel, pattern: str) -> None:
    """Let a model be loaded without a word about tensors of a checkpoint whose names match a pattern."""
    known = model._keys_to_ignore_on_load_unexpected  # 5.11, 5.24
    model._keys_to_ignore_on_load_unexpected = {*(known or ()), pattern}


def commit_of(config: PreTrainedConfig) -> str | None:
    """Return the commit on the Hub that a configuration was loaded from, if it is known."""
    return getattr(config, "_commit_hash", None)  # 5.11, 5.24


def cached_file_or_none(source: str, name: str, commit: str | None = None, **options: Any) -> str | None:
    """Return the path of a file of a folder or the Hub, at a commit if known, or None where it is not in reach."""
    options["_commit_hash"] = commit  # 5.11, 5.24
    options |= {
        f"_raise_exceptions_for_{what}": False
        for what in ("gated_repo", "missing_entries", "connection_errors")  # 5.11, 5.24
    }
    return cached_file(source, name, **options)


def heads_of(model_type: str) -> dict[str, str]:
    """Return the class name behind each Auto class for a native model type."""
    heads = {}
    for auto_class, names in model_mappings().items():
        name = names.get(model_type)
        if name is not None:
            heads[auto_class] = name if isinstance(name, str) else name[0]
    return heads


def native_class(compact: type[Any]) -> type[Any]:
    """Return the native class that a compact class, of models or configurations, was made from."""
    return next(base for base in compact.__mro__ if base.__module__.startswith("transformers."))
