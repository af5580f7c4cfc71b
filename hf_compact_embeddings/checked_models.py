"""What the package does when it loads and saves a checkpoint, beside what a checkpoint's own code does.

Before anything is read: whether the files are whole, of the format's types, and as large as the configuration says.
Whatever else a damaged checkpoint ends in becomes one kind of error. And what is saved over an older checkpoint is
written whole before a file of that is touched. Code that travels in checkpoints runs where they
are trusted; what is here stays in the package.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, logging

from .drafts import draft_folder
from .kernels import materialize, require_runtime
from .modeling import modeling_compact
from .modeling.errors import CheckpointError, CompactConfigError, CompactEmbeddingsError
from .modeling.layers import compact_layers
from .modeling.modeling_compact import CompactConfigMixin, CompactModelMixin
from .modeling.structure import CompactEmbedding

logger = logging.get_logger(__name__)

# What weights are called, in one file or in several; Transformers would read old ones beside the new.
WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")

_FLOATS = ("F64", "F32", "F16", "BF16")
# How many times larger than their files tables may be: floats may be stored as half of what the options say.
_MOST_GROWTH = 4
# Products of two such numbers are infinite in the float32 that scores are summed in.
_ENORMOUS = 1e19
_ignores_damage: ContextVar[bool] = ContextVar("ignores_damage", default=False)


@contextmanager
def one_kind_of_error(source: object) -> Iterator[None]:
    """Name the checkpoint in whatever a damaged one ends in; what lacks a file, a library or memory says so itself."""
    try:
        yield
    except OSError as error:
        # What Transformers says of a broken configuration, beside of files that are not there.
        if "is not a valid JSON file" not in str(error):
            raise
        raise CheckpointError(str(error)) from error
    except (CompactEmbeddingsError, ImportError, MemoryError, RuntimeError):
        raise
    except Exception as error:
        raise CheckpointError(f"{str(source)!r} cannot be loaded: {type(error).__name__}: {error}") from error


@contextmanager
def sizes_of_tensors() -> Iterator[None]:
    """Say that it is the configuration's fault if tensors without values cannot be made: no memory was asked for."""
    try:
        yield
    except (RuntimeError, OverflowError) as error:
        if torch.empty(0).device.type != "meta":
            raise
        raise CompactConfigError(f"The configuration has sizes that no tensor can have: {error}") from error


class CheckedModelMixin(CompactModelMixin):
    """What the package adds to a compact model class."""

    _wrong_types: Sequence[str] = ()

    def __init__(self, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
        """Build the model; a size that no tensor can have is an error of the configuration."""
        with sizes_of_tensors():
            super().__init__(config, *args, **kwargs)
        for table in self.compact_tables.values():
            table.register_load_state_dict_post_hook(_check_loaded)

    @classmethod
    def from_pretrained(
        cls, *args: Any, ignore_damage: bool = False, compact_runtime: str | None = None, **kwargs: Any
    ) -> Self:
        """Load as any model does, and refuse a checkpoint whose compact table is missing, damaged, or does not fit.

        Pickles are read only where `use_safetensors=False` asks for them.

        Args:
            *args: as natively.
            ignore_damage: load for repair, with a warning, what has tensors that the tables do not know, or numbers of
                theirs that are missing, stored as another type, or not finite: the missing and the infinite become 0.
            compact_runtime: decode the tables' rows into this type at once, as `materialize()` does.
            **kwargs: as natively.
        """
        require_runtime(compact_runtime, "compact_runtime")
        token = _ignores_damage.set(ignore_damage)
        try:
            with one_kind_of_error(args[0] if args else kwargs.get("pretrained_model_name_or_path")):
                loaded = super().from_pretrained(*args, **kwargs)
        finally:
            _ignores_damage.reset(token)
        if compact_runtime is not None:
            # With `output_loading_info` a pair.
            materialize(loaded[0] if isinstance(loaded, tuple) else loaded, compact_runtime)
        return loaded

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        """Look at the files before they are read."""
        if state_dict is None and checkpoint_files:
            model._wrong_types = wrong_types(model.compact_tables | compact_layers(model), checkpoint_files)
        load: Any = PreTrainedModel._load_pretrained_model
        return load(model, state_dict, checkpoint_files, *args, **kwargs)

    def _refuse_damaged(self, path: str, part: Any, info: dict[str, Any]) -> None:
        faults = [fault for fault in self._wrong_types if fault.startswith(f"`{path}.")]
        if faults and not _ignores_damage.get():
            raise CheckpointError(" ".join(faults))
        if _ignores_damage.get() and part.device.type != "meta":
            info, more = _repaired(path, part, info)
            faults += more
        if faults:
            logger.warning(f"The checkpoint is damaged, and loaded all the same: {' '.join(faults)}")
        super()._refuse_damaged(path, part, info)
        if part.device.type != "meta" and isinstance(part, CompactEmbedding):
            require_finite_rows(path, part)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as any model does; files are moved to where they belong when all of them are written."""
        save: Any = super().save_pretrained
        folder = Path(save_directory)
        if not is_main_process or folder.is_file() or kwargs.keys() & {"push_to_hub", "variant"}:
            save(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with draft_folder(folder, "checkpoint") as draft:
            save(draft, state_dict=state_dict, **kwargs)
            written = {file.name for file in draft.iterdir()}
            # The configuration says what the others are: it comes last.
            for name in sorted(written, key=lambda name: (name == CONFIG_NAME, name)):
                os.replace(draft / name, folder / name)
        for pattern in WEIGHTS:
            for file in folder.glob(pattern):
                if file.name not in written:
                    file.unlink()


class CheckedConfigMixin(CompactConfigMixin):
    """What the package adds to a compact config class."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration; a field of the wrong type is one kind of error."""
        with one_kind_of_error(config_dict.get("_name_or_path") or f"The configuration of a {cls.model_type} model"):
            return super().from_dict(config_dict, **kwargs)


def _check_loaded(table: Any, incompatible: Any) -> None:
    """Check what `load_state_dict()` has put into a table, where it was given all of it."""
    if not incompatible.missing_keys and table.device.type != "meta":
        table.check_values()


def wrong_types(parts: Mapping[str, nn.Module], files: Sequence[str]) -> list[str]:
    """Say which tensors of tables and small layers are stored in safetensors files as another type than the format's.

    Raises where a file is damaged, or where the configuration would take far more memory than the files are large.
    """
    stored: dict[str, str] = {}
    for file in files:
        if str(file).endswith(".safetensors"):
            stored |= _types(Path(file))
    total = sum(Path(file).stat().st_size for file in files)
    faults = []
    for path, part in parts.items():
        if isinstance(part, CompactEmbedding) and part.nbytes > _MOST_GROWTH * total:
            raise CheckpointError(
                f"`compact_embeddings` in the model's configuration, table {path!r}: it says {part.nbytes:,} bytes, "
                f"but there are only {total:,} bytes in {', '.join(map(str, files))}."
            )
        for name, tensor in part.state_dict().items():
            allowed = _FLOATS if tensor.is_floating_point() else ("U8",)
            # A base model's names lack the first part of those of a model with a head.
            place = f".{path}.{name}"
            found = {kind for key, kind in stored.items() if f".{key}".endswith(place) or place.endswith(f".{key}")}
            if wrong := sorted(found.difference(allowed)):
                faults.append(f"`{path}.{name}` is stored as {', '.join(wrong)}, but allowed is {', '.join(allowed)}.")
    return faults


def _types(file: Path) -> dict[str, str]:
    """Return the type of each tensor in a safetensors file, by name."""
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            start = 8 + int.from_bytes(content.read(8), "little")
            if start > size:
                raise ValueError(f"its header would end at byte {start:,}, but there are {size:,}")
            header = json.loads(content.read(start - 8))
        header.pop("__metadata__", None)
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size:
            raise ValueError(f"by its header it has {end:,} bytes, but there are {size:,}")
        return {name: str(entry["dtype"]) for name, entry in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{str(file)!r} is no whole safetensors file: {error}.") from error


@torch.no_grad()
def _repaired(path: str, part: nn.Module, info: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Put zeros where numbers are missing or not finite; return the rest of what was wrong, and what was done."""
    faults, inside = [], f"{path}."
    missing, floats = set(info["missing_keys"]), dict(part.named_parameters())
    for name, value in floats.items():
        if inside + name in missing:
            faults.append(f"`{inside}{name}` is missing: it is 0.")
            value.zero_()
        elif not bool(value.isfinite().all()):
            faults.append(f"`{inside}{name}` held NaN or infinity: they are 0.")
            value.copy_(_finite(value))
    unknown = {key for key in info["unexpected_keys"] if key.startswith(inside)}
    faults += [f"`{key}` is unknown." for key in sorted(unknown)]
    return {
        **info,
        "missing_keys": missing - {inside + name for name in floats},
        "unexpected_keys": set(info["unexpected_keys"]) - unknown,
    }, faults


@torch.no_grad()
def require_finite_rows(path: str, structure: CompactEmbedding) -> None:
    """Raise if numbers that are finite multiply to rows that are not; only tables with very large ones are decoded."""
    # A row is a sum of products of three such numbers at the most, and of codes, which are small.
    most = torch.finfo(structure.dtype).max ** 0.25
    sizes = {name: float(value.abs().amax()) for name, value in structure.named_parameters() if value.numel()}
    large = [name for name, size in sizes.items() if size > most]
    if not large:
        return
    try:
        rows = [(chunk * structure.scale).abs().amax() for chunk in structure.dense_chunks()]
    except CompactConfigError:
        # There is no table: hashes of words have rows without end.
        return
    largest = float(torch.stack(rows).amax())
    # Numbers so far beyond those of all rows are multiplied by zero there, and by something else in scores.
    if not math.isfinite(largest) or largest < _ENORMOUS < max(sizes.values()):
        raise CheckpointError(
            f"Rows or scores of table {path!r} are not finite: there are numbers above {most:.3g} in "
            f"{', '.join(map(repr, large))}."
        )


def _finite(value: Tensor) -> Tensor:
    return value.where(value.isfinite(), torch.zeros_like(value))


modeling_compact.mixins = (CheckedModelMixin, CheckedConfigMixin)
