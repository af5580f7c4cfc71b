"""inspect(): words are shown with their nearest tokens, before and after, and the page shows what the report says."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hf_compact_embeddings as hce
from hf_compact_embeddings.cli.main import main
from hf_compact_embeddings.evaluation import neighbours
from hf_compact_embeddings.evaluation.neighbours import Nearest, nearest_in, words_to_show
from hf_compact_embeddings.evaluation.page import report_page

from ..tiny_models import tiny_model
from ..tools import VOCABULARY


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_ROWS_PER_CHUNK", 7)
    monkeypatch.setattr(neighbours, "_RANKS", (1, 10, 30))


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """Return a tokenizer of five special tokens, and of words of four letters beside numbers."""
    words = [f"wo{chr(97 + place // 26)}{chr(97 + place % 26)}" for place in range(VOCABULARY)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names += [words[place] if place % 3 else f"{place}" for place in range(5, VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), names, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in special.items()}
    )


def test_the_nearest_are_found_chunk_by_chunk() -> None:
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = nearest_in(table, [3, 49])._found
    unit = torch.nn.functional.normalize(table, dim=-1)
    cosines = unit[[3, 49]] @ unit.T
    cosines[0, 3] = cosines[1, 49] = -2
    assert torch.equal(found, cosines.topk(5, dim=1).indices)


def test_a_table_of_few_rows_has_few_neighbours() -> None:
    found = Nearest([0], torch.ones(1, 2))
    found.take(slice(0, 3), torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.9]]))
    assert found._found[0, :2].tolist() == [2, 1]


def test_words_are_whole_and_from_frequent_to_rare() -> None:
    tokenizer = tokenizer_of_words()
    counts = torch.arange(len(tokenizer), 0, -1)
    chosen = words_to_show(counts, tokenizer)
    assert list(chosen.items()) == [(10, 11), (29, 30)]


def report(**options: int) -> hce.Report:
    dense = tiny_model("bert")
    compact = hce.compress(dense, "subspace", num_subspaces=2, codebook_size=8, **options)
    return hce.inspect(compact, against=dense, tokenizer=tokenizer_of_words())


def test_of_a_table_that_is_kept_all_neighbours_are() -> None:
    found = report(private_rows=tiny_model("bert").config.vocab_size, token_counts=torch.ones(120))
    assert found.neighbours and all(one.kept == len(one.before) == 5 for one in found.neighbours)
    assert json.dumps(found.to_dict()["neighbours"])


class Page(HTMLParser):
    """What a browser would fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_fetches_nothing() -> None:
    found = report()
    page = Page(report_page(found, "<a & b>"))
    text = " ".join(page.words)
    assert page.open == [] and page.fetched == [] and "url(" not in text
    assert "<a & b>" in text and "subspace" in text and f"{found.ratio:.1f}×" in text
    assert "Nearest tokens" in text and "Where the error lies" in text and found.neighbours[0].token in text


def test_without_the_dense_model_the_page_says_less() -> None:
    text = report_page(hce.inspect(hce.compress(tiny_model("bert"), "scalar", bits=4)), "tiny")
    assert "Nearest tokens" not in text and "Where the error lies" not in text and "The whole model" in text


def test_the_verb_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compact = hce.compress(tiny_model("bert"), "scalar", bits=4)
    compact.save_pretrained(tmp_path / "compact")
    assert main(["inspect", str(tmp_path / "compact"), "--html", str(tmp_path / "page.html")]) == 0
    assert "compact" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).words
    assert main(["inspect", str(tmp_path / "compact"), "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "page.html" in capsys.readouterr().err


def test_where_no_page_can_be_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_compact_embeddings.cli.demo.find_model", pytest.fail)
    assert main(["demo", "--html", str(tmp_path)]) == main(["demo", "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert capsys.readouterr().err.count("a page is a file in a folder that is there") == 2


def test_the_tokenizer_may_lie_beside_the_dense_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = tiny_model("bert")
    hce.compress(dense, "scalar", bits=4).save_pretrained(tmp_path / "compact")
    dense.save_pretrained(tmp_path / "dense")
    tokenizer_of_words().save_pretrained(tmp_path / "dense")
    assert main(["inspect", str(tmp_path / "compact"), "--against", str(tmp_path / "dense"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bands"]
