"""Compact model and config classes: `CompactBertForMaskedLM` is `BertForMaskedLM` with a compact table.

The classes are made on demand from the native ones, by name: `modeling_compact.Compact<native name>`.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as transformers_init
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file, logging

from .architectures import install_structure
from .auto_classes import auto_map_of, heads_of, native_config_class, primary_auto_class
from .code_files import changed_files, code_record, shipped_files
from .errors import CheckpointError, CompactConfigError
from .extra_inputs import take_extra_inputs
from .structure import CompactEmbedding, StructureConfig, config_from_dict
from .structure_blocks import BlocksEmbedding  # noqa: F401
from .structure_factorized import FactorizedEmbedding  # noqa: F401
from .structure_hashed import HashEmbedding  # noqa: F401
from .structure_rotated import RotatedEmbedding  # noqa: F401
from .structure_scalar import ScalarEmbedding  # noqa: F401
from .structure_subspace import SubspaceEmbedding  # noqa: F401
from .tied import TiedHead, adopt_tied_modules

logger = logging.get_logger(__name__)

PREFIX = "Compact"
# What marks a card as that of a compact checkpoint.
CARD_TAG = "compact-embeddings"
# Trainer writes its card in the place of README.md; under this name saving keeps the one that was there before.
KEPT_CARD = "compact_card.md"
_FETCH_OPTIONS = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")
_config_classes: dict[str, type[PreTrainedConfig]] = {}
_model_classes: dict[str, type[PreTrainedModel]] = {}


if TYPE_CHECKING:
    from transformers import PreTrainedConfig as _NativeConfig
    from transformers import PreTrainedModel as _NativeModel
else:
    _NativeConfig = object
    _NativeModel = object


class CompactModelMixin(_NativeModel):
    """What a compact model class adds to its native one; mixed in before it."""

    config: Any
    # The text of the card beside the checkpoint that the model was loaded from.
    _compact_card: str | None = None

    def __init__(self, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
        """Build the native model on the meta device and put the structure in the place of its table."""
        stored = getattr(config, "compact_embeddings", None)
        if not isinstance(stored, dict):
            raise CompactConfigError(
                f"`compact_embeddings` is {stored!r}, but {type(self).__name__} needs a structure's `to_dict()`: "
                "this configuration belongs to a dense model. Use `hf_compact_embeddings.compress()` to make a "
                "compact model of it."
            )
        device = torch.get_default_device()
        structure_config = config_from_dict(stored)
        if device.type != "meta" and structure_config != structure_config.unfitted():
            # Sizes that a fit has found fit to its codes only; the configuration may be that of a model in use.
            structure_config, config = structure_config.unfitted(), copy.deepcopy(config)
            config.compact_embeddings = structure_config.to_dict()
        _register_inner_class(config)
        with torch.device("meta"), transformers_init.meta_device_safe_creation_ops():
            super().__init__(config, *args, **kwargs)
            # A generic head has built its inner model through this very class.
            if not isinstance(self.get_input_embeddings(), CompactEmbedding):
                install_structure(self, structure_config)
        structure = self.compact_embedding
        self.config.compact_embeddings = structure.config.to_dict()
        self._skip_codes_in_data_parallel()
        if structure.extra_inputs:
            take_extra_inputs(self, structure.extra_inputs)
        self.add_model_tags([CARD_TAG, structure.config.method])
        if device.type != "meta":
            self._start_from_random(device)

    @property
    def compact_embedding(self) -> CompactEmbedding:
        """The structure, also where a library has wrapped it."""
        return next(module for module in self.modules() if isinstance(module, CompactEmbedding))

    def initialize_weights(self) -> None:
        """Start biases of tied heads at zero, as those of native heads; what was loaded stays."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, TiedHead) and module.bias is not None:
                transformers_init.zeros_(module.bias)

    def _start_from_random(self, device: torch.device) -> None:
        self.to_empty(device=device)
        structure = self.compact_embedding
        structure._is_hf_initialized = True  # type: ignore[assignment]
        self.initialize_weights()
        structure.start_from_random()
        self.tie_weights()

    def _skip_codes_in_data_parallel(self) -> None:
        # Equal on all processes and never trained: broadcasting them at each step would only cost time.
        self._ddp_params_and_buffers_to_ignore = [
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, CompactEmbedding)
            for name, _ in module.named_buffers()
        ]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load as any model does, and refuse a checkpoint whose compact table is missing or does not fit."""
        ignore_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        model._report_changed_code(source)
        model._refuse_damaged_table(info)
        model._refuse_other_tokenizer(source, kwargs)
        model._compact_card = None if source is None else model._card_of(source, kwargs)
        if info["mismatched_keys"] and not ignore_mismatched:
            wrong = ", ".join(
                f"{key}: {given} in the file, {wanted} here" for key, given, wanted in info["mismatched_keys"]
            )
            raise RuntimeError(f"Sizes differ; pass `ignore_mismatched_sizes=True` to start these anew: {wrong}.")
        return (model, info) if output_loading_info else model

    def _report_changed_code(self, source: object) -> None:
        """Warn if code files are not those that were saved: beside this file as remote code, else in the folder."""
        remote = __name__.startswith("transformers_modules")
        folder = Path(__file__).parent if remote else Path(str(source))
        changed = changed_files(self.config.compact_code, folder) if remote or folder.is_dir() else []
        if changed:
            logger.warning(
                f"The code files of {str(source)!r} are not those that were saved with it: {', '.join(changed)} "
                f"differ from the SHA-256 that `compact_code` in its configuration records. "
                + ("This code is running now. " if remote else "This code was not run: the installed package was. ")
                + "Load the checkpoint from where you trust it, at a pinned revision, or save it again."
            )

    def _refuse_damaged_table(self, info: dict[str, Any]) -> None:
        path = self.structure_path() + "."
        missing = sorted(key for key in info["missing_keys"] if key.startswith(path))
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {', '.join(missing)}. A dense checkpoint cannot be read into "
                f"{type(self).__name__}: load it with its own class and use `hf_compact_embeddings.compress()`."
            )
        unexpected = sorted(key for key in info["unexpected_keys"] if key.startswith(path))
        if unexpected:
            raise CheckpointError(
                f"The checkpoint has {', '.join(unexpected)}, for which its configuration has no use: "
                f"{self.config.compact_embeddings}."
            )
        for key, given, wanted in info["mismatched_keys"]:
            if key.startswith(path):
                raise CheckpointError(
                    f"`{key}` is {tuple(given)} in the checkpoint, but `compact_embeddings` in its configuration "
                    f"says {tuple(wanted)}: {self.config.compact_embeddings}."
                )
        structure = self.compact_embedding
        if structure.device.type != "meta":
            structure.check_values()

    def _refuse_other_tokenizer(self, source: Any, options: dict[str, Any]) -> None:
        if source is not None:
            known = {name: options[name] for name in _FETCH_OPTIONS if name in options}
            self.compact_embedding.check_tokenizer(lambda: get_tokenizer_config(source, **known))

    def _card_of(self, source: object, options: dict[str, Any]) -> str | None:
        """Return the compact card of a checkpoint, as it was before Trainer wrote its own; None if none is in reach."""
        known = {name: options[name] for name in _FETCH_OPTIONS if name in options}
        for name in (KEPT_CARD, "README.md"):
            try:
                path = cached_file(
                    str(source),
                    name,
                    **known,
                    _commit_hash=getattr(self.config, "_commit_hash", None),
                    _raise_exceptions_for_gated_repo=False,
                    _raise_exceptions_for_missing_entries=False,
                    _raise_exceptions_for_connection_errors=False,
                )
                text = "" if path is None else Path(path).read_text(encoding="utf-8", errors="replace")
            except OSError:
                # A cache that nobody may write to: the model is there all the same.
                continue
            if CARD_TAG in text:
                return text
        return None

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        if "forward" in vars(self):
            take_extra_inputs(replica, self.compact_embedding.extra_inputs)
        # Modules are put into the replica later, and what is tied to the table would read that of the first device.
        replica._forward_pre_hooks = self._forward_pre_hooks.copy()
        replica.register_forward_pre_hook(lambda module, _: adopt_tied_modules(self, module))
        return replica

    def structure_path(self) -> str:
        """Return the path of the structure among the modules."""
        return next(path for path, module in self.named_modules() if isinstance(module, CompactEmbedding))

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as any model does, with the table in its storage dtype, the code that reads it, and the card it had."""
        structure, path = self.compact_embedding, self.structure_path() + "."
        self.config.compact_embeddings = structure.config.to_dict()
        self.config.auto_map = auto_map_of(type(self.config), PREFIX)
        module_file = getattr(sys.modules[type(self).__module__], "__file__", None)
        self.config.compact_code = None if module_file is None else code_record(shipped_files(module_file))
        state = self.state_dict() if state_dict is None else state_dict
        stored = {
            key: value.to(structure.stored_dtype(key.removeprefix(path))) if key.startswith(path) else value
            for key, value in state.items()
        }
        super().save_pretrained(save_directory, is_main_process, stored, **kwargs)
        if self._compact_card is not None and is_main_process:
            (Path(save_directory) / KEPT_CARD).write_text(self._compact_card, encoding="utf-8")

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table; a no-op for the table itself, so that tied modules stay where they are."""
        if value is not self.get_input_embeddings():
            super().set_input_embeddings(value)

    def _get_resized_embeddings(
        self,
        old_embeddings: nn.Module,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        if not isinstance(old_embeddings, CompactEmbedding):
            return super()._get_resized_embeddings(old_embeddings, new_num_tokens, pad_to_multiple_of, mean_resizing)
        size = old_embeddings.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != old_embeddings.num_embeddings:
            new_rows = None
            if not mean_resizing and size > old_embeddings.num_embeddings:
                std = getattr(self.config.get_text_config(), "initializer_range", None) or 0.02
                new_rows = torch.randn(size - old_embeddings.num_embeddings, old_embeddings.embedding_dim) * std
            old_embeddings.resized(size, new_rows).round_to_storage()
            self.config.compact_embeddings = old_embeddings.config.to_dict()
            self._skip_codes_in_data_parallel()
        return old_embeddings

    def _get_resized_lm_head(
        self, old_lm_head: nn.Module, new_num_tokens: int | None = None, **kwargs: Any
    ) -> nn.Module:
        if not isinstance(old_lm_head, TiedHead):
            return super()._get_resized_lm_head(old_lm_head, new_num_tokens, **kwargs)
        if new_num_tokens is not None:
            old_lm_head.resize_bias(new_num_tokens)
        return old_lm_head


def _register_inner_class(config: PreTrainedConfig) -> None:
    """Let `AutoModel.from_config(config)`, which generic heads call, find the compact base class."""
    if type(config) not in AutoModel._model_mapping:
        native = heads_of(native_config_class(type(config)).model_type).get("AutoModel")
        if native is not None:
            AutoModel.register(type(config), model_class(getattr(transformers, native)), exist_ok=True)


def native_model_class(compact: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the native class that a compact model class was made from."""
    return next(base for base in compact.__mro__ if base.__module__.startswith("transformers."))


class CompactConfigMixin(_NativeConfig):
    """What a compact config class adds to its native one; mixed in before it."""

    compact_embeddings: Any

    def __post_init__(self, *args: Any, **kwargs: Any) -> None:
        """Take a structure's configuration as well as its `to_dict()`."""
        if isinstance(self.compact_embeddings, StructureConfig):
            self.compact_embeddings = self.compact_embeddings.to_dict()
        super().__post_init__(*args, **kwargs)


def config_class(native: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Return the compact config class of a native one: the same fields and `compact_embeddings`."""
    name = PREFIX + native.__name__
    if name not in _config_classes:
        namespace = {
            "__module__": __name__,
            "__doc__": f"{native.__name__} with `compact_embeddings`, the `to_dict()` of a structure's configuration.",
            "__annotations__": {
                "compact_embeddings": dict | None,
                "compact_code": dict | None,
                "compact_source": dict | None,
            },
            "compact_embeddings": None,
            # The hashes of the code files in the checkpoint, and what the table was made from.
            "compact_code": None,
            "compact_source": None,
            "model_type": f"compact-{native.model_type}",
        }
        _config_classes[name] = type(name, (CompactConfigMixin, native), namespace)
    return _config_classes[name]


def model_class(native: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the compact model class of a native one."""
    name = PREFIX + native.__name__
    if name not in _model_classes:
        namespace = {
            "__module__": __name__,
            "__doc__": f"{native.__name__} whose input table, and what is tied to it, is compact.",
            "config_class": config_class(native.config_class),
            # Makes saving copy this file and those it imports into the checkpoint.
            "_auto_class": primary_auto_class(native),
        }
        _model_classes[name] = type(name, (CompactModelMixin, native), namespace)
    return _model_classes[name]


def __getattr__(name: str) -> type:
    native = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if isinstance(native, type) and issubclass(native, PreTrainedConfig):
        return config_class(native)
    if isinstance(native, type) and issubclass(native, PreTrainedModel):
        return model_class(native)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
