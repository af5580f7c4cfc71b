"""What a person asks of a method (options) and what a fit found (layout): two dataclasses that check themselves.

Both are stored as plain JSON, side by side. Every field is declared with the values that it may have, so that one place
checks types and ranges before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch

from .errors import CompactConfigError, config_error

STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BUDGETS = ("ratio", "max_bytes", "bits_per_weight")
# No table has more rows, axes or bytes: larger numbers would overflow where sizes are computed from them.
LARGEST = 1 << 31
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

# Returns what is allowed where the value is not, else None.
_Check = Callable[[Any], str | None]


def _field(default: Any, check: _Check) -> Any:
    def optional(value: Any) -> str | None:
        return None if value is None else check(value)

    return dataclasses.field(default=default, metadata={"check": optional if default is None else check})


def integer(default: Any = dataclasses.MISSING, least: int = 0, most: int = LARGEST) -> Any:
    """Declare a field that is a whole number; where the default is None, it may be None."""
    return _field(default, lambda value: _integer_fault(value, least, most))


def integers(least: int = 0, most: int = LARGEST, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that is a tuple of whole numbers."""

    def check(value: Any) -> str | None:
        good = isinstance(value, tuple) and not any(_integer_fault(number, least, most) for number in value)
        return None if good else f"it must be a list of whole numbers from {least:,} to {most:,}"

    return _field(default, check)


def number(default: float | None, least: float, most: float = math.inf) -> Any:
    """Declare a field that is a finite number; where the default is None, it may be None."""

    def check(value: Any) -> str | None:
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        upper = "" if most == math.inf else f" and at most {most:g}"
        return None if good and least <= value <= most else f"it must be a number of at least {least:g}{upper}"

    return _field(default, check)


def choice(default: Any, *others: Any) -> Any:
    """Declare a field that is one of a few values."""
    allowed = (default, *others)

    def check(value: Any) -> str | None:
        # True is 1 and False is 0, but they are no whole numbers of ours, nor the other way round.
        good = any(type(value) is type(option) and value == option for option in allowed)
        return None if good else "allowed are " + ", ".join(map(repr, allowed))

    return dataclasses.field(default=default, metadata={"check": check})


def flag(default: bool = False) -> Any:
    """Declare a field that is true or false."""
    return choice(default, not default)


def size(default: None = None) -> Any:
    """Declare a field that is a number of bytes, also as "1.5MB"; or None."""
    return _field(default, lambda value: _integer_fault(value, 1, 1 << 62))


def _integer_fault(value: Any, least: int, most: int) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return None
    upper = "" if most in (LARGEST, 1 << 62) else f" and at most {most:,}"
    return f"it must be a whole number of at least {least:,}{upper}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedFields:
    """A dataclass whose fields say what they may be."""

    def __post_init__(self) -> None:
        """Check all fields."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                # JSON gives lists back.
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            check = field.metadata.get("check")
            fault = None if check is None else check(value)
            if fault is not None:
                raise config_error(field.name, value, fault)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, fields: Any, kind: str) -> Self:
        """Read what `to_json()` wrote; `kind` names it in errors."""
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
            raise config_error(kind, fields, "it must hold fields and values")
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        missing = sorted(required - set(fields))
        if unknown or missing:
            wrong = f"has no {', '.join(map(repr, missing))}" if missing else f"has {', '.join(map(repr, unknown))}"
            raise CompactConfigError(f"`{kind}` {wrong}; its fields are {', '.join(known)}.")
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureConfig(CheckedFields):
    """What a person asks of a method; each method adds options of its own.

    A budget counts all stored bytes, rows kept exactly included; at most one of the three can be given.

    Attributes:
        ratio: the table becomes at least this many times smaller; or
        max_bytes: at most this large, as a number or as "1MB"; or
        bits_per_weight: at most this many bits for each value of the table.
        init: "pretrained" fits a table; "random" starts anew, for training from scratch.
        private_rows: rows to keep exactly: the padding row and special tokens, then the most frequent tokens.
        storage_dtype: the floats' type in a saved file; in memory they have the model's dtype.
    """

    method: ClassVar[str]
    # Written into each checkpoint; grows when an older checkpoint of the method could be misread.
    format_version: ClassVar[int] = 1

    ratio: float | None = number(None, 1.0)
    max_bytes: int | None = size()
    bits_per_weight: float | None = number(None, 1e-4, 64.0)
    init: str = choice("pretrained", "random")
    private_rows: int = integer(0)
    storage_dtype: str = choice("float16", "float32", "bfloat16")

    def __post_init__(self) -> None:
        """Check all fields."""
        if isinstance(self.max_bytes, str):
            object.__setattr__(self, "max_bytes", parse_size(self.max_bytes))
        super().__post_init__()
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
        if len(given) > 1:
            raise CompactConfigError(f"Only one of {', '.join(map(repr, BUDGETS))} can be given: {given}.")

    @property
    def float_bytes(self) -> int:
        """Bytes of a stored float."""
        return STORAGE_DTYPES[self.storage_dtype].itemsize

    def budget(self, rows: int, width: int, value_bytes: int = 4) -> int | None:
        """Return the bytes that may be spent on a table (rows, width) of so many bytes a value; None: no limit."""
        if self.ratio is not None:
            return int(rows * width * value_bytes / self.ratio)
        if self.bits_per_weight is not None:
            return int(rows * width * self.bits_per_weight / 8)
        return self.max_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the plain JSON that `config.compact_embeddings` holds of a table: these are the options alone."""
        return {"method": self.method, "format_version": self.format_version, "options": self.to_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureLayout(CheckedFields):
    """What a fit found, and all sizes that follow from it; each method adds its own.

    Attributes:
        coded_rows: rows that have codes; later ones are private.
        private_rows: rows stored exactly.
        mask_padding: whether the padding row reads as zero, as in a model that is trained from scratch.
    """

    coded_rows: int = integer(least=1)
    private_rows: int = integer(0)
    mask_padding: bool = flag()


def parse_size(text: object) -> int:
    """Return the bytes of a size as "500KB", "1.5 MB" or 1000000."""
    match = re.fullmatch(r"([0-9.]+)\s*([KMG]?B)?", str(text).strip().upper())
    try:
        return int(float(match.group(1)) * _UNITS[match.group(2) or ""])  # type: ignore[union-attr]
    except (AttributeError, ValueError, OverflowError):
        raise config_error("max_bytes", text, 'it must be a size as 1000000, "500KB" or "1.5MB"') from None
