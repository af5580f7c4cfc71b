"""Makes the stub of the classes that are made on demand, so that editors and type checkers know them by name.

Run `make stubs` when `constraints.txt` names another Transformers: the stub lists what that one has.
"""

from __future__ import annotations

from importlib.metadata import version

from hf_compact_embeddings.modeling.modeling_compact import PREFIX
from hf_compact_embeddings.registration import compact_class_names
from hf_compact_embeddings.transformers_internals import CONFIG_MAPPING_NAMES

from ..tools import PACKAGE

STUB = PACKAGE / "compact_classes.pyi"

HEAD = '''"""The classes that are made on demand, for type checkers.

Those of transformers {version}; made by `make stubs`.
"""

import transformers as t

from .modeling.modeling_compact import CompactConfigMixin as _Config
from .modeling.modeling_compact import CompactModelMixin as _Model

'''


def stub() -> str:
    """Return the text of the stub for the Transformers that is installed."""
    configs = set(CONFIG_MAPPING_NAMES.values())
    lines = [
        f"class {name}({'_Config' if name in configs else '_Model'}, t.{name.removeprefix(PREFIX)}): ...\n"
        for name in compact_class_names()
    ]
    return HEAD.format(version=version("transformers")) + "".join(lines)


def main() -> None:
    """Write the stub."""
    STUB.write_text(stub(), encoding="utf-8")
    print(f"{STUB.name}: {STUB.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
