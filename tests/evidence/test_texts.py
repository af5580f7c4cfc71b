"""Texts are read in one way from everything that may hold them, as often as they are asked for."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

import hf_compact_embeddings as hce
from hf_compact_embeddings.evidence import HubTexts, Texts, read_texts
from hf_compact_embeddings.evidence.texts import single_texts

from ..tools import tiny_texts

TEXTS = tiny_texts(5)


def write_json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(source: Any, **options: Any) -> list:
    """Read twice: the second pass gives what the first one gave."""
    texts = read_texts(source, **options)
    found = list(texts)
    assert list(texts) == found
    return found


def files(folder: Path) -> dict[str, Path]:
    """Write the same texts in every kind of file."""
    rows = [{"id": f"a{n}", "text": text, "label": n} for n, text in enumerate(TEXTS)]
    lines = "\n\n".join(TEXTS) + "\n"
    (folder / "a.txt").write_text("\ufeff" + lines)
    (folder / "lines").write_text(lines.replace("\n", "\r\n"))
    for opener, suffix in ((gzip, "gz"), (bz2, "bz2"), (lzma, "xz")):
        with opener.open(folder / f"a.txt.{suffix}", "wt") as file:
            file.write(lines)
    write_json_lines(folder / "a.jsonl", rows)
    write_json_lines(folder / "strings.jsonl", TEXTS)
    write_json_lines(folder / "lines.json", rows)
    (folder / "a.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with (folder / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["id", "text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "a.tsv").write_text("id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in rows))
    return {path.name: path for path in folder.iterdir()}


def test_every_kind_of_file(tmp_path: Path) -> None:
    written = files(tmp_path)
    assert len(written) == 12
    for name, path in written.items():
        assert read(path) == read(str(path)) == TEXTS, name


def test_several_files_and_folders(tmp_path: Path) -> None:
    written = files(tmp_path)
    assert read([written["a.txt"], str(written["a.jsonl"])]) == read(iter([written["a.txt"], written["a.csv"]]))
    assert read([str(written["a.txt"]), str(written["a.jsonl"])]) == TEXTS * 2
    # A file without a suffix may be anything: named alone it is read, in a folder it is not.
    assert read(tmp_path) == read(str(tmp_path)) == TEXTS * 11
    assert read([tmp_path, written["lines"]]) == TEXTS * 12


def test_of_a_folder_with_splits_one_is_read(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("validation", 2)):
        write_json_lines(tmp_path / f"{split}.jsonl", [{"sentence": text} for text in TEXTS[:count]])
    assert read(tmp_path) == TEXTS[:3]
    assert read(tmp_path, split="validation") == TEXTS[:2]
    with pytest.raises(hce.CompactConfigError, match="no file for the split 'test'.*it holds train.jsonl, valid"):
        read_texts(tmp_path, split="test")


def test_what_python_holds() -> None:
    expected = [text.strip() for text in TEXTS]
    assert read(TEXTS + ["", "  "]) == read(tuple(TEXTS)) == read(text + " " for text in TEXTS) == expected
    assert read([{"text": text, "n": 1} for text in TEXTS]) == TEXTS
    assert read(Dataset.from_dict({"text": TEXTS})) == TEXTS
    assert read(Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()) == TEXTS
    texts = read_texts(TEXTS)
    assert read_texts(texts) is texts


def test_a_word_that_names_a_folder_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w5", "w6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("w7\n")
    assert read(["w5", "w6"]) == ["w5", "w6"]
    assert read(["a.txt", "w5 w6"]) == ["a.txt", "w5 w6"]
    assert read("w5") == read(["./w5"]) == read(["w5/a.txt"]) == read([Path("w5")]) == ["w7"]


def test_nothing_is_held_or_read_ahead(tmp_path: Path) -> None:
    class Endless:
        read = 0

        def __iter__(self) -> Iterator[str]:
            while True:
                self.read += 1
                yield "w5 w6"

    source = Endless()
    texts = iter(read_texts(source))
    assert [next(texts) for _ in range(3)] == ["w5 w6"] * 3
    assert source.read < 100


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"label": "long words of a label", "text": "w5 w6"}, ["w5 w6"]),
        ({"idx": 3, "sentence": "w5 w6", "label": 1}, ["w5 w6"]),
        ({"premise": "w5", "hypothesis": "w6 w7", "label": "no"}, ["w5", "w6 w7"]),
        ({"sentence1": "w5", "sentence2": "w6", "score": 1.5}, ["w5", "w6"]),
        ({"question": "w5", "sentence": "w6", "label": "yes"}, ["w5", "w6"]),
        (
            {"id": "9c", "title": "w9", "context": "w5 w6", "question": "w7", "answers": {"text": ["w6"]}},
            ["w7", "w5 w6"],
        ),
        ({"id": "x7", "body": "w5 w6", "headline": "w7 w8", "stars": "4.5", "lang": "en"}, ["w5 w6", "w7 w8"]),
        ({"word": "w5", "n": 3}, ["w5"]),
    ],
)
def test_columns_of_text_are_found(row: dict, expected: list[str], tmp_path: Path) -> None:
    assert read([row, row]) == expected * 2
    assert read(write_json_lines(tmp_path / "a.jsonl", [row])) == expected
    # The first row may have no text.
    assert read([{**row, **dict.fromkeys(key for key in row if row[key] in expected)}, row]) == expected


def test_a_column_that_is_called_text_is_one_whatever_it_begins_with() -> None:
    rows = [{"text": "1984", "kind": "two words"}, *[{"text": None, "kind": "two words"}] * 30]
    assert read([*rows, {"text": "w5", "kind": "two words"}]) == ["1984", "w5"]
    assert read([*rows[1:], rows[0]]) == ["1984"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"one": "w5 w6", "two": "w7", "text": "w8"}]
    path = write_json_lines(tmp_path / "a.jsonl", rows)
    assert read(path, column="two") == read(f"{path}:two") == read(rows, column="two") == ["w7"]
    assert read(path, column=("one", "two")) == read(f"{path}:one+two") == ["w5 w6", "w7"]
    assert read([f"{path}:two", f"{path}:one"]) == ["w7", "w5 w6"]
    assert read(f"{tmp_path}:two") == ["w7"]
    assert read(path, column="one", pair_column="two") == [("w5 w6", "w7")]
    assert list(single_texts(read_texts(path, column="one", pair_column="two"))) == ["w5 w6", "w7"]
    odd = tmp_path / "b:two"
    odd.write_text("w9\n")
    assert read(str(odd)) == ["w9"], "a file that has this name goes before a column"


def test_a_mark_of_quotation_in_a_tsv_is_part_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"w5 w6\t0\nw7 "w8"\t1\n')
    assert read(tmp_path / "a.tsv") == ['"w5 w6', 'w7 "w8"']


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "`texts` is empty"),
        (["", " "], "`texts` is empty"),
        (iter([]), "`texts` is empty"),
        (Dataset.from_dict({"number": [1]}), "no column 'text'; its columns are number, and none of them holds text"),
        ([{"one": "w5", "two": "w6"}], "no column 'text'; its columns are one, two: name one of them"),
        ([3], "a row is a int"),
        ([("w5", 3)], "a row is a tuple"),
        (3, "`texts` is a int"),
        ("no such file.txt", "`texts` is one string, 'no such file.txt', and no file"),
        ("w5 w6 " * 5_000, "and no file: put texts into a list"),
        ("", "`texts` is one string, '', and no file"),
        ("missing.txt", "'missing.txt' is no file"),
        ("missing.jsonl:text", "'missing.jsonl' is no file"),
        (Path("missing"), "'missing' is no file"),
        ("/missing", "'/missing' is no file"),
        (["missing.txt", "other.jsonl.gz"], "'missing.txt' is no file"),
        (DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}), "has the parts train: give one of them"),
        (Dataset.from_dict({"text": ["a"]}).to_pandas(), "is a table of pandas"),
    ],
)
def test_what_cannot_be_read(source: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hce.CompactConfigError, match=message):
        read_texts(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n\n", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\n", "is empty"),
        ("a.parquet", b"PAR1\x15\x04\x15\x00", "'a.parquet' is no text: give a text file"),
        ("a.jsonl", b'{"text": "w5"}\n{"text"\n', r"a.jsonl' cannot be read: line 2 is no JSON"),
        ("a.json", b'[{"text": "w5"},\n{"text"\n', r"a.json' cannot be read"),
        ("a.txt.gz", b"w5 w6\n", r"a.txt.gz' cannot be read"),
        ("a.txt.gz", gzip.compress(b"w5 w6\n" * 1000, mtime=0)[:40], r"a.txt.gz' cannot be read"),
        ("a.txt.xz", b"w5 w6\n", r"a.txt.xz' cannot be read"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(hce.CompactConfigError, match=message):
        list(read_texts(tmp_path / name))


def test_a_folder_without_texts(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(hce.CompactConfigError, match=r"has no file that ends in .jsonl.*it holds model.safetensors"):
        read_texts(tmp_path)


def test_a_column_that_is_missing_or_no_text() -> None:
    rows = [{"one": "w5", "two": {"w": 6}}]
    with pytest.raises(hce.CompactConfigError, match="no column 'three'; its columns are one, two"):
        read_texts(rows, column="three")
    with pytest.raises(hce.CompactConfigError, match="a dict in column 'two', no text"):
        read_texts(rows, column="two")
    with pytest.raises(hce.CompactConfigError, match="`pair_column` is 'two'"):
        read_texts(rows, column=("one", "three"), pair_column="two")


def test_pairs(tmp_path: Path) -> None:
    rows = [{"one": "w5 ", "two": "w6 w7"}, {"one": "w8", "two": ""}, {"one": "w9", "two": "w5"}]
    path = write_json_lines(tmp_path / "a.jsonl", rows)
    pairs = [("w5", "w6 w7"), ("w9", "w5")]
    for source in (path, rows, Dataset.from_list(rows)):
        assert read(source, column="one", pair_column="two") == pairs
    assert list(HubTexts(str(tmp_path), column="one", pair_column="two")) == pairs
    assert read(["w5 w6", *pairs, ("w7", " ")]) == ["w5 w6", *pairs]
    with pytest.raises(hce.CompactConfigError, match="no column 'three'; its columns are one, two"):
        read_texts(rows, column="one", pair_column="three")


def test_hub_data_sets_are_streamed(tmp_path: Path) -> None:
    # A folder stands for the Hub: `datasets` reads both in the same way.
    write_json_lines(tmp_path / "train.jsonl", [{"question": "w5", "context": "w6 w7"}])
    stream = HubTexts(str(tmp_path))
    assert list(stream) == list(stream) == ["w5", "w6 w7"]
    assert isinstance(stream, Texts) and read_texts(stream) is stream


def test_hub_data_sets_name_the_extra_that_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.txt").write_text("w5\n")
    assert read(tmp_path / "a.txt") == ["w5"]
    with pytest.raises(hce.CompactEmbeddingsError, match=r"`texts` 'org/data' .*hf_compact_embeddings\[train\]"):
        read_texts("org/data")


def test_a_name_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: str | None, **options: Any) -> None:
        raise FileNotFoundError(f"{name} {config} {options}")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(hce.CompactConfigError, match="'org/data' is no file or folder.*org/data en .*'split': 'dev'"):
        read_texts("org/data", config="en", split="dev")
