"""What the Auto classes know about a native architecture: its heads, by name, without importing it."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from .transformers_internals import model_mappings

_MODULE = "modeling_compact"


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
