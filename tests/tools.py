"""What several test files need: comparing models, tokenizers without files, processes of their own."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_compact_embeddings.modeling.structure import CompactEmbedding

from .tiny_models import VOCABULARY, tiny_inputs, tiny_model

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "hf_compact_embeddings"

# Runs before the code of a process that must not see the package. `-I -S` already keeps the folder,
# PYTHONPATH and the finders of editable installs out; this finder hides a package installed for good.
_WITHOUT_PACKAGE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_compact_embeddings":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
sys.path += {site_packages!r}
try:
    import hf_compact_embeddings
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package can be imported here")
"""


def run_python(code: str, *arguments: object, home: Path, without_package: bool = False, timeout: float = 300) -> str:
    """Run code in a fresh offline process with a cache under `home`, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    flags: list[str] = []
    code = textwrap.dedent(code)
    if without_package:
        flags = ["-I", "-S"]
        folders = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        code = _WITHOUT_PACKAGE.format(site_packages=folders) + code
    else:
        environment["PYTHONPATH"] = str(REPOSITORY)
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"the process failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def last_json(output: str) -> Any:
    """Return what the last line of a process's output holds."""
    return json.loads(output.strip().splitlines()[-1])


@contextmanager
def reading_plainly() -> Iterator[None]:
    """Read codes as a checkpoint does that brings its own code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompactEmbedding, "fast_path", lambda *_: None)
        yield


@torch.no_grad()
def outputs_of(model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> list[Tensor]:
    """Return all floating-point tensors that a model gives for the tiny inputs, or for others."""
    inputs = tiny_inputs(model) if inputs is None else inputs
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: value.unsqueeze(1) for name, value in inputs.items()}
    leaves = tree_leaves(tuple(model(**inputs).values()))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def assert_same_outputs(one: PreTrainedModel, other: PreTrainedModel, tolerance: float = 0.0) -> None:
    """Demand the same outputs, bit by bit if no tolerance is given."""
    # The last bit of a matrix product can depend on how its factors lie in memory, and the tensors of a
    # loaded file lie as they do there: copies all lie alike.
    if tolerance == 0.0:
        one, other = copy.deepcopy(one), copy.deepcopy(other)
    first, second = outputs_of(one), outputs_of(other)
    assert len(first) == len(second) > 0
    for left, right in zip(first, second, strict=True):
        assert left.isfinite().all()
        torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


def skip_unless_compiled_whole() -> None:
    """Skip a test where torch's compiler, as that of 2.6, cannot read Transformers' own code in one piece."""
    native = tiny_model("bert")
    try:
        torch.compile(native, fullgraph=True, backend="eager")(**tiny_inputs(native))
    except torch._dynamo.exc.Unsupported as error:
        pytest.skip(f"a native model is not compiled in one piece either: {str(error).splitlines()[0]}")


def assert_same_state(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Demand the same names, dtypes and bits of all parameters and buffers."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def storages(module: torch.nn.Module) -> set[int]:
    """Return the addresses of the memory that a module's tensors live in."""
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.device.type != "meta"}


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation gives inside the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


def tiny_tokenizer(cls: str = "[CLS]") -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words for the tiny models: five special tokens, then w5, w6, …"""
    special = ["[PAD]", "[UNK]", cls, "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(5, VOCABULARY))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A [SEP]",
        pair=f"{cls} $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(cls, vocabulary[cls]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token=cls,
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def tiny_texts(count: int = 30, length: int = 8, seed: int = 0) -> list[str]:
    """Return texts of the tiny tokenizer's words, the low numbers often and the high ones rarely."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, length, generator=generator).square() * (VOCABULARY - 5)
    return [" ".join(f"w{5 + int(i)}" for i in row) for row in spread]
