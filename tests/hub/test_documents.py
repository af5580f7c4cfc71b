"""Whatever README and guide show is run, in their order, with tiny models in the place of the real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.evidence.word_frequencies import is_available

from ..tools import REPOSITORY
from .server import HubServer

ROWS, WIDTH = 3000, 32
MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": "BertModel",
    "intfloat/multilingual-e5-small": "BertModel",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "LlamaForCausalLM",
}
# What the guide takes over from the README.
BEGINNING = """
import hf_compact_embeddings as hce
from transformers import AutoModel, AutoTokenizer

name = "sentence-transformers/all-MiniLM-L6-v2"
model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
"""


def snippets(document: str) -> list[str]:
    """Return the Python code that a document shows."""
    return re.findall(r"^```python\n(.*?)^```", (REPOSITORY / document).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def words() -> list[str]:
    """Return words of several languages: tokens of the tiny models."""
    if not is_available():
        return [f"w{number}" for number in range(ROWS - 5)]
    from wordfreq import top_n_list

    found = dict.fromkeys(word for code in ("en", "de", "fr", "es", "zh") for word in top_n_list(code, 800))
    return list(found)[: ROWS - 5]


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *words()])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **dict(names))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with tiny models under the names of real ones, and the texts that documents name."""
    torch.manual_seed(0)
    shape = {"vocab_size": ROWS, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
    more = {"LlamaForCausalLM": {"tie_word_embeddings": True, "eos_token_id": 3}}
    for name, head in MODELS.items():
        config_class = transformers.LlamaConfig if head.startswith("Llama") else transformers.BertConfig
        model = getattr(transformers, head)(config_class(**shape, **more.get(head, {})))
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    lines = [" ".join(words()[start : start + 12]) for start in range(0, 1200, 12)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    pairs = [{"sentence1": one, "sentence2": lines[0], "score": place % 5} for place, one in enumerate(lines[:20])]
    (tmp_path / "stsb_test.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(document: str, known: dict[str, object]) -> None:
    for number, code in enumerate(snippets(document), 1):
        code = code.replace('"me/', f'"{HubServer.user}/').replace('"max_steps": 1000', '"max_steps": 2')
        exec(compile(code.replace('"max_steps": 60', '"max_steps": 2'), f"{document}, snippet {number}", "exec"), known)


@pytest.mark.usefixtures("api", "folder")
def test_the_readme(hub: HubServer) -> None:
    known: dict[str, object] = {}
    run("README.md", known)
    assert isinstance(known["classifier"], hce.CompactBertForSequenceClassification)
    assert b"compact" in hub.files(f"{HubServer.user}/minilm-classifier")["README.md"]


@pytest.mark.usefixtures("api", "folder")
def test_the_guide() -> None:
    known: dict[str, object] = {}
    exec(BEGINNING, known)
    run("docs/guide.md", known)
    assert isinstance(known["fresh"], hce.CompactBertForMaskedLM)


@pytest.mark.usefixtures("api", "folder")
def test_the_page_on_deploying() -> None:
    known: dict[str, object] = {}
    exec(BEGINNING, known)
    run("docs/deploy.md", known)
    assert isinstance(known["compact"], hce.CompactBertModel)
    assert known["compact"].config.compact_layers["codes"] == "int8"


@pytest.mark.usefixtures("api", "folder")
@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_commands_are_known(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = set(re.findall(r"hf-compact ([a-z]+)", (REPOSITORY / document).read_text("utf-8")))
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0 and "usage: hf-compact" in capsys.readouterr().out


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/guide.md",
        "docs/deploy.md",
        "docs/how_it_works.md",
        "docs/measurements.md",
        "CONTRIBUTING.md",
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = REPOSITORY / document
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target
    for target, place in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text("utf-8")):
        text = (path.parent / target if target else path).read_text("utf-8")
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert place in slugs, f"{target}#{place}"
