"""What no vocabulary buys: distances of unseen words, typos and other scripts, and memory as the vocabulary grows.

    python -m benchmarks.hashformers.unseen_words

For each word the table has the Hamming distance of the 128 bits, and the cosine of the vectors that a `proj` and a
`pool` structure with random values gives (without the vector that all words share), averaged over `--seeds` families of
hashes and values. "random word" is the mean over all pairs of different rows of the table. Nothing is trained:
the figures show what the bits alone hold.
"""

from __future__ import annotations

import argparse
import os
import statistics
from itertools import combinations
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import hf_compact_embeddings as hce  # noqa: E402

from ..common.library import HashEmbedding, HashSettings, WordHasher, expand_bits, unpack_signatures  # noqa: E402
from ..common.record import write  # noqa: E402

PAIRS = {
    "typo, letter doubled": [("wonderful", "wonderfull"), ("tomorrow", "tommorrow"), ("necessary", "neccessary")],
    "typo, letter missing": [("government", "goverment"), ("beginning", "begining"), ("embarrassed", "embarassed")],
    "typo, letters swapped": [("receive", "recieve"), ("believe", "beleive"), ("friend", "freind")],
    "typo, short word": [("the", "teh"), ("with", "wiht"), ("film", "flim")],
    "inflection": [("compress", "compressed"), ("embedding", "embeddings"), ("quick", "quickly")],
    "compound, unseen": [("transformer", "hashformer"), ("token", "detokenizer"), ("bank", "neobank")],
    "other script, inflection": [("книга", "книги"), ("λόγος", "λόγου"), ("مكتبة", "مكتبات")],
    "accent lost": [("café", "cafe"), ("naïve", "naive"), ("über", "uber")],
    "the same in another script": [("moscow", "москва"), ("coffee", "кофе"), ("sushi", "寿司")],
    "synonym": [("film", "movie"), ("quick", "fast"), ("buy", "purchase")],
}
VOCABULARIES = (30_000, 300_000, 3_000_000, 30_000_000)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="families of hashes and values to average over")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {"distances": distances(arguments.seeds, arguments.width), "megabytes": megabytes(arguments.width)}
    print(markdown("pair", found["distances"]))
    print(markdown("words", found["megabytes"]))
    if arguments.output:
        write(arguments.output, found, families=arguments.seeds, width=arguments.width)


def markdown(corner: str, rows: dict[str, dict[str, float]]) -> str:
    """Return rows of figures as a table."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{value:,.2f}' for value in row.values())} |")
    return "\n".join([*lines, ""])


def distances(seeds: int, width: int) -> dict[str, dict[str, float]]:
    """Return, for each kind of pair, the mean distances under both hashes."""
    words = sorted({word for pairs in PAIRS.values() for pair in pairs for word in pair})
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for hashing in ("md", "lsh"):
            bits = bits_of(words, HashSettings(hashing=hashing, hash_seed=seed))
            hamming = torch.cdist(bits.float(), bits.float(), p=0)
            columns = {f"{hashing} bits": hamming}
            for variant in ("proj", "pool"):
                columns[f"{hashing} {variant} cosine"] = cosines(variant, hashing, seed, bits, width)
            for column, matrix in columns.items():
                for name, pairs in PAIRS.items():
                    values = [float(matrix[words.index(one), words.index(other)]) for one, other in pairs]
                    rows.setdefault(name, {}).setdefault(column, []).extend(values)
                every = [float(matrix[one, other]) for one, other in combinations(range(len(words)), 2)]
                rows.setdefault("random word", {}).setdefault(column, []).extend(every)
    order = [*PAIRS, "random word"]
    return {name: {column: statistics.mean(values) for column, values in rows[name].items()} for name in order}


def bits_of(words: list[str], settings: HashSettings) -> Tensor:
    """Return the bits (n, 128) of words."""
    hasher = WordHasher(settings)
    if settings.hashing == "md":
        return expand_bits(torch.tensor([hasher.word_id(word) for word in words]))
    return unpack_signatures(torch.tensor([hasher.signature(word) for word in words]))


def cosines(variant: str, hashing: str, seed: int, bits: Tensor, width: int) -> Tensor:
    """Return the cosines (n, n) between the vectors of a structure with random values."""
    config = hce.HashConfig(variant=variant, hashing=hashing, source="text", init="random")
    torch.manual_seed(seed)
    structure = random_structure(config, config.special_rows, width)
    structure.reset_parameters()
    with torch.no_grad():
        vectors = structure.hashed(bits)
    return torch.cosine_similarity(vectors.unsqueeze(0), vectors.unsqueeze(1), dim=-1)


def random_structure(config: hce.HashConfig, rows: int, width: int) -> HashEmbedding:
    """Return a structure with the sizes of a random start, and without values."""
    return HashEmbedding(config, HashEmbedding.random_layout(config, rows, width), rows, width)


def megabytes(width: int) -> dict[str, dict[str, float]]:
    """Return the size in float16, special rows and generic vector included, of each variant and of a table."""
    sizes: dict[str, dict[str, Any]] = {}
    for count in VOCABULARIES:
        row = {"dense table": count * width * 2 / 1e6}
        for variant in ("pool", "add", "proj"):
            config = hce.HashConfig(variant=variant, source="text")
            with torch.device("meta"):
                row[variant] = random_structure(config, count, width).nbytes / 1e6
        sizes[f"{count:,}"] = row
    return sizes


if __name__ == "__main__":
    main()
