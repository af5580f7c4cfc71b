"""What every method's configuration has, how it checks itself, and how it is stored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

import torch

from .errors import config_error

FORMAT_VERSION = 1
STORAGE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureConfig:
    """What every method's configuration has; a method adds its own fields.

    Attributes:
        storage_dtype: the floats' type in a saved file; in memory they have the model's dtype.
        coded_rows: rows that the structure codes itself; None until the size of the table is known.
        private_rows: rows stored exactly, in a small table beside the codes.
        init: "pretrained" fits a table; "random" starts anew, for training from scratch.
        mask_padding: whether the padding row reads as zero. A model trained from scratch masks it;
            `compress()` keeps the source's own padding row as a private row instead.
    """

    method: ClassVar[str]
    # Whether the fit reads how the tokens are written.
    fits_token_strings: ClassVar[bool] = False

    init: str = "pretrained"
    storage_dtype: str = "float16"
    coded_rows: int | None = None
    private_rows: int = 0
    mask_padding: bool = True

    def __post_init__(self) -> None:
        """Check the fields that all methods share."""
        self.require_choice("init", ("pretrained", "random"))
        self.require_choice("storage_dtype", tuple(STORAGE_DTYPES))
        if self.coded_rows is not None:
            self.require_integer("coded_rows", 1)
        self.require_integer("private_rows", 0)
        self.require_choice("mask_padding", (True, False))

    def require_choice(self, field: str, allowed: tuple[object, ...]) -> None:
        """Raise unless the field has one of the allowed values."""
        if getattr(self, field) not in allowed:
            raise config_error(field, getattr(self, field), "allowed are " + ", ".join(map(repr, allowed)))

    def require_integer(self, field: str, minimum: int, maximum: int | None = None) -> None:
        """Raise unless the field is a whole number in the range."""
        value = getattr(self, field)
        upper = "" if maximum is None else f" and at most {maximum:,}"
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < minimum or (maximum is not None and value > maximum):
            raise config_error(field, value, f"it must be a whole number of at least {minimum}{upper}")

    def require_number(self, field: str, minimum: float, maximum: float = math.inf) -> None:
        """Raise unless the field is a finite number in the range."""
        value = getattr(self, field)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not minimum <= value <= maximum:
            upper = "" if maximum == math.inf else f" and at most {maximum:g}"
            raise config_error(field, value, f"it must be a number of at least {minimum:g}{upper}")

    def resolved(self, num_embeddings: int, embedding_dim: int) -> Self:
        """Return the configuration for a table (V, D): defaults filled in, limits checked."""
        if self.coded_rows is None:
            return dataclasses.replace(self, coded_rows=num_embeddings)
        if self.coded_rows > num_embeddings:
            raise config_error("coded_rows", self.coded_rows, f"the table has {num_embeddings:,} rows")
        return self

    @classmethod
    def candidates(cls, num_embeddings: int, embedding_dim: int, max_bytes: int) -> list[Self]:
        """Return configurations worth trying for a table (V, D) that take at most so many bytes."""
        return []

    def unfitted(self) -> Self:
        """Return the configuration without what a fit to a table has set."""
        return self

    def for_rows(self, count: int) -> Self:
        """Return the same configuration for a table of `count` rows, none of them private: a sample."""
        return dataclasses.replace(self.unfitted(), coded_rows=None, private_rows=0)

    def head_cost(self, num_embeddings: int, embedding_dim: int) -> float:
        """Return the work of scoring all rows once, in multiply-adds or look-ups; a dense head takes V · D."""
        return float(num_embeddings * embedding_dim)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain JSON form that `config.compact_embeddings` holds."""
        fields = {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }
        return {"method": self.method, "format_version": FORMAT_VERSION} | fields
