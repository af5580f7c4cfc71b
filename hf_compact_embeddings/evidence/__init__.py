"""What a fit is given: texts, token frequencies, sensitivity, exact rows, token strings, and where a table came from.

`gather()` is the door: evidence in, `Evidence.fit_source()` out.
"""

from .gathering import NEEDS, Evidence, gather
from .texts import HubTexts, Text, Texts, read_texts

__all__ = ["NEEDS", "Evidence", "HubTexts", "Text", "Texts", "gather", "read_texts"]
