"""Compact model and config classes: `CompactBertForMaskedLM` is `BertForMaskedLM` with a compact table.

The classes are made on demand from the native ones, by name: `modeling_compact.Compact<native name>`.

In a checkpoint, this code lies without the docstrings of its functions and classes: hf_compact_embeddings has them.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .architectures import FURTHER_PARTS, INPUT_TABLE, install_structures, read_stored_tables
from .code_files import code_record, shipped_files, warn_of_changed_code, write_files
from .errors import CheckpointError, SizesDifferError
from .layers import CompactLinear  # noqa: F401
from .options import StructureConfig
from .structure import CompactEmbedding
from .structure_blocks import BlocksEmbedding  # noqa: F401
from .structure_factorized import FactorizedEmbedding  # noqa: F401
from .structure_hash import HashEmbedding  # noqa: F401
from .structure_rotated import RotatedEmbedding  # noqa: F401
from .structure_scalar import ScalarEmbedding  # noqa: F401
from .structure_subspace import SubspaceEmbedding  # noqa: F401
from .tied import CompactHead, TableHead, adopt_tied_modules
from .transformers_internals import (
    cached_file_or_none,
    commit_of,
    heads_of,
    mark_as_initialized,
    meta_device_safe_creation_ops,
    native_class,
    registered_model_class,
    zeros_,
)

PREFIX = "Compact"
# What tells a compact model: in cards, and among the tags of its repository.
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
        """Build the native model on the meta device and put structures in the place of its tables."""
        # `get_default_device()` does not see `with torch.device(...)` before torch 2.8.
        device = torch.empty(0).device
        tables = read_stored_tables(getattr(config, "compact_embeddings", None))
        if device.type != "meta" and any(layout is not None for _, layout in tables.values()):
            # A random start has sizes of its own; the configuration may be that of a model in use.
            config = copy.deepcopy(config)
            tables = {path: (options, None) for path, (options, _) in tables.items()}
            config.compact_embeddings = {path: options.to_dict() for path, (options, _) in tables.items()}
            config.compact_layers = None
        _register_inner_class(config)
        with torch.device("meta"), meta_device_safe_creation_ops():
            super().__init__(config, *args, **kwargs)
            install_structures(self, tables)
            for name, part in FURTHER_PARTS.items():
                part.install(self, getattr(config, name, None))
        self.store_tables()
        self.add_model_tags([CARD_TAG, *sorted({table.options.method for table in self.compact_tables.values()})])
        for structure in self.compact_tables.values():
            structure.attach(self)
        if device.type != "meta":
            self._start_from_random(device)

    @property
    def compact_tables(self) -> dict[str, CompactEmbedding]:
        """The structures by the paths of their modules, also where a library has wrapped them."""
        return {path: module for path, module in self.named_modules() if isinstance(module, CompactEmbedding)}

    @property
    def compact_embedding(self) -> CompactEmbedding:
        """The structure of the input table; of the output head, where that alone is compact."""
        return self.compact_tables[self.input_table_path]

    @property
    def input_table_path(self) -> str:
        """The path of that structure among the modules."""
        tables, inside = self.compact_tables, set(self.get_input_embeddings().modules())
        if not tables:
            raise CheckpointError(f"{type(self).__name__} has no compact table.")
        return next((path for path, module in tables.items() if module in inside), next(iter(tables)))

    def store_tables(self) -> None:
        """Write what the tables are into the configuration, and keep their codes out of data-parallel broadcasts."""
        tables = self.compact_tables
        self.config.compact_embeddings = {path: table.to_dict() for path, table in tables.items()}
        # Equal on all processes and never trained: broadcasting them at each step would only cost time.
        codes = [name for name, buffer in self.named_buffers() if buffer.dtype == torch.uint8]
        self._ddp_params_and_buffers_to_ignore = codes

    def initialize_weights(self) -> None:
        """Start biases of heads at zero, as those of native heads; what was loaded stays."""
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, TableHead) and module.bias is not None:
                zeros_(module.bias)

    def _start_from_random(self, device: torch.device) -> None:
        self.to_empty(device=device)
        tables = self.compact_tables.values()
        for structure in tables:
            mark_as_initialized(structure)
        self.initialize_weights()
        for structure in tables:
            structure.reset_parameters()
            structure.round_to_storage()
        self.tie_weights()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:
        """Load as any model does, and refuse a checkpoint whose compact table is missing or does not fit.

        Pickles are read only where `use_safetensors=False` asks for them.
        """
        ignore_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        asked = {"use_safetensors": True, **kwargs}
        model, info = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **asked)
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        warn_of_changed_code(model.config.compact_code, source)
        model._compact_card = None if source is None else model._card_of(source, kwargs)
        for path, part in model.named_modules():
            if hasattr(part, "check_values"):
                model._refuse_damaged(path, part, info)
        if info["mismatched_keys"] and not ignore_mismatched:
            wrong = ", ".join(
                f"{key}: {given} in the file, {wanted} here" for key, given, wanted in info["mismatched_keys"]
            )
            raise SizesDifferError(f"Sizes differ; pass `ignore_mismatched_sizes=True` to start these anew: {wrong}.")
        # Native annotations leave the pair out too.
        return (model, info) if output_loading_info else model  # type: ignore[return-value]

    def _refuse_damaged(self, path: str, part: Any, info: dict[str, Any]) -> None:
        inside = path + "."
        missing = sorted(key for key in info["missing_keys"] if key.startswith(inside))
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {', '.join(missing)}. A dense checkpoint cannot be read into "
                f"{type(self).__name__}: load it with its own class and use `hf_compact_embeddings.compress()`."
            )
        unexpected = sorted(key for key in info["unexpected_keys"] if key.startswith(inside))
        if unexpected:
            raise CheckpointError(
                f"The checkpoint has {', '.join(unexpected)}, for which its configuration has no use: "
                f"`compact_embeddings` is {self.config.compact_embeddings}."
            )
        for key, given, wanted in info["mismatched_keys"]:
            if key.startswith(inside):
                raise CheckpointError(
                    f"`{key}` is {tuple(given)} in the checkpoint, but `compact_embeddings` in its configuration "
                    f"says {tuple(wanted)}: {self.config.compact_embeddings}."
                )
        if part.device.type != "meta":
            part.check_values()

    def _card_of(self, source: object, options: dict[str, Any]) -> str | None:
        """Return the compact card of a checkpoint, as it was before Trainer wrote its own; None if none is in reach."""
        known = {option: options[option] for option in _FETCH_OPTIONS if option in options}
        for name in (KEPT_CARD, "README.md"):
            try:
                path = cached_file_or_none(str(source), name, commit_of(self.config), **known)
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
            for structure in self.compact_tables.values():
                structure.attach(replica)
        # Modules are put into the replica later, and what is tied to the table would read that of the first device.
        replica._forward_pre_hooks = self._forward_pre_hooks.copy()
        replica.register_forward_pre_hook(lambda module, _: adopt_tied_modules(self, module))
        return replica

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: saving writes the code that the methods need, and all Auto classes, by itself."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as any model does, with the tables in their storage dtypes, the code that reads them, and the card."""
        self.store_tables()
        stored = dict(self.state_dict() if state_dict is None else state_dict)
        for path, table in self.compact_tables.items():
            for key in stored:
                if key.startswith(path + "."):
                    stored[key] = stored[key].to(table.stored_dtype(key.removeprefix(path + ".")))
        for part in FURTHER_PARTS.values():
            part.round_floats(self, stored)
        # The configuration writes the code.
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=stored, **kwargs)
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
            self.store_tables()
        return old_embeddings

    def _get_resized_lm_head(
        self, old_lm_head: nn.Module, new_num_tokens: int | None = None, **kwargs: Any
    ) -> nn.Module:
        if not isinstance(old_lm_head, TableHead):
            return super()._get_resized_lm_head(old_lm_head, new_num_tokens, **kwargs)
        if new_num_tokens is not None:
            old_lm_head.resize_bias(new_num_tokens)
            if isinstance(old_lm_head, CompactHead):
                self._get_resized_embeddings(old_lm_head.table, new_num_tokens, **kwargs)
        return old_lm_head


def _register_inner_class(config: PreTrainedConfig) -> None:
    """Let `AutoModel.from_config(config)`, which generic heads call, find the compact base class."""
    if registered_model_class(type(config)) is None:
        native = heads_of(native_class(type(config)).model_type).get("AutoModel")
        if native is not None:
            AutoModel.register(type(config), model_class(getattr(transformers, native)), exist_ok=True)


class CompactConfigMixin(_NativeConfig):
    """What a compact config class adds to its native one; mixed in before it."""

    compact_embeddings: Any

    def __post_init__(self, *args: Any, **kwargs: Any) -> None:
        """Take a method's options, or its `to_dict()`, for the input table, as well as a whole set of tables."""
        tables = self.compact_embeddings
        if isinstance(tables, StructureConfig) or (isinstance(tables, dict) and "method" in tables):
            tables = {INPUT_TABLE: tables}
        if isinstance(tables, dict):
            tables = {
                path: table.to_dict() if isinstance(table, StructureConfig) else table for path, table in tables.items()
            }
        self.compact_embeddings = tables
        super().__post_init__(*args, **kwargs)

    def code_that_reads_it(self) -> dict[str, bytes]:
        """Return the code files that a checkpoint with these tables carries, by name."""
        methods = {options.method for options, _ in read_stored_tables(self.compact_embeddings).values()}
        return shipped_files(__file__, methods if self.compact_layers is None else methods | {"layers"})

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as any configuration does, with the code that reads the tables beside it."""
        files = self.code_that_reads_it()
        native = native_class(type(self))
        classes = {"AutoConfig": native.__name__, **heads_of(native.model_type)}
        self.auto_map = {auto_class: f"modeling_compact.{PREFIX}{name}" for auto_class, name in classes.items()}
        self.compact_code = code_record(files)
        write_files(save_directory, files)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: a compact model saves the code that reads it by itself."""


# What classes are made with. The package has others in their place, which look closer at what they load.
mixins: tuple[type, type] = (CompactModelMixin, CompactConfigMixin)


def config_class(native: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """Return the compact config class of a native one: the same fields and `compact_embeddings`."""
    name = PREFIX + native.__name__
    if name not in _config_classes:
        namespace = {
            "__module__": __name__,
            "__doc__": f"{native.__name__} with `compact_embeddings`: what is stored of each table, by its path.",
            "__annotations__": {
                "compact_embeddings": dict | None,
                "compact_code": dict | None,
                "compact_source": dict | None,
                "compact_layers": dict | None,
            },
            "compact_embeddings": None,
            "compact_layers": None,
            # The hashes of the code files in the checkpoint, and what the table was made from.
            "compact_code": None,
            "compact_source": None,
            "model_type": f"compact-{native.model_type}",
        }
        _config_classes[name] = type(name, (mixins[1], native), namespace)
    return _config_classes[name]


def model_class(native: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the compact model class of a native one."""
    name = PREFIX + native.__name__
    if name not in _model_classes:
        namespace = {
            "__module__": __name__,
            "__doc__": f"{native.__name__} with compact tables.",
            "config_class": config_class(native.config_class),
        }
        _model_classes[name] = type(name, (mixins[0], native), namespace)
    return _model_classes[name]


def __getattr__(name: str) -> type:
    native = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if isinstance(native, type) and issubclass(native, PreTrainedConfig):
        return config_class(native)
    if isinstance(native, type) and issubclass(native, PreTrainedModel):
        return model_class(native)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
