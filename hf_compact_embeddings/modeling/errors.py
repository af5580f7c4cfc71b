"""The exceptions of the package, one hierarchy."""

from __future__ import annotations


class CompactEmbeddingsError(Exception):
    """Base of every error that this package raises on purpose."""


class CompactConfigError(CompactEmbeddingsError, ValueError):
    """A field of a configuration, or an argument, has a value that is not allowed."""


class UnsupportedArchitectureError(CompactEmbeddingsError, ValueError):
    """A model has no input table of a kind that can be made compact."""


class CheckpointError(CompactEmbeddingsError, ValueError):
    """A checkpoint is not compact, is damaged, or disagrees with its own configuration."""


class SizesDifferError(CheckpointError, RuntimeError):
    """A tensor beside the tables has another size than the model's; natively that is a `RuntimeError`."""


def config_error(field: str, given: object, allowed: str) -> CompactConfigError:
    """Return the error for `field`: what was given and what is allowed."""
    return CompactConfigError(f"`{field}` is {given!r}, but {allowed}.")
