"""Settings as people type them: NAME=VALUE."""

from __future__ import annotations

import json
from typing import Any

from .modeling.errors import CompactConfigError


def parse_setting(words: str, flag: str) -> tuple[str, Any]:
    """Read NAME=VALUE; numbers, true, false and null as in JSON, anything else as a string.

    Args:
        words: that were typed.
        flag: behind which they were, for the message if they are something else.
    """
    name, separator, value = words.partition("=")
    if not separator or not name:
        raise CompactConfigError(f"`{flag}` is {words!r}, but it must be NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
