"""What only the package uses of Transformers' private parts, with the versions that it was seen in.

What checkpoints need of them travels: `modeling/transformers_internals.py` and `modeling/tokenizer_internals.py`.

A private name may be gone in any release. No file but these three uses one (a test reads them all), so these are the
files to mend then. 5.11 is the lowest version that is supported, 5.24 the newest that the tests ran with.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import configuration_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES  # 5.11, 5.24
from transformers.models.auto.modeling_auto import (  # noqa: F401  # 5.11, 5.24
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, TOKENIZER_MAPPING_NAMES  # noqa: F401  # 5.11, 5.24

from .modeling.transformers_internals import heads_of

if TYPE_CHECKING:
    # Importing it takes seconds.
    from transformers import Trainer

# Private parts that classes of this package override, where Transformers reads them: renamed there, they would never
# be read again, without a word. A test looks each of them up in Transformers. All were seen in 5.11 and in 5.24.
OVERRIDDEN = {
    "PreTrainedModel": ("_get_resized_embeddings", "_get_resized_lm_head", "_load_pretrained_model"),
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


def ignored_on_save(model: PreTrainedModel) -> set[str]:
    """Return the names of tensors that saving leaves out."""
    return set(model._keys_to_ignore_on_save or ())  # 5.11, 5.24


def set_commit(config: PreTrainedConfig, commit: str | None) -> None:
    """Note the commit on the Hub that a configuration was loaded from."""
    config._commit_hash = commit  # 5.11, 5.24


def attention_of(config: PreTrainedConfig) -> str | None:
    """Return the implementation of attention that a configuration asks for."""
    return config._attn_implementation  # 5.11, 5.24


def set_attention(config: PreTrainedConfig, implementation: str | None) -> None:
    """Ask for an implementation of attention."""
    config._attn_implementation = implementation  # 5.11, 5.24


def checkpoint_function(layer: nn.Module) -> Any:
    """Return what runs a `GradientCheckpointingLayer` that is checkpointed, or None."""
    return getattr(layer, "_gradient_checkpointing_func", None)  # 5.11, 5.24


def set_checkpoint_function(layer: nn.Module, function: Any) -> None:
    """Replace what runs a `GradientCheckpointingLayer` that is checkpointed."""
    layer._gradient_checkpointing_func = function  # 5.11, 5.24


def prepared_inputs(trainer: Trainer, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a batch on the device and in the dtype that a trainer's model takes."""
    return trainer._prepare_inputs(inputs)  # 5.11, 5.24


def primary_auto_class(native: type[PreTrainedModel]) -> str:
    """Return an Auto class that leads to a native model class."""
    heads = heads_of(native.config_class.model_type)
    return next((auto_class for auto_class, name in heads.items() if name == native.__name__), "AutoModel")
