"""The tokenizer without a vocabulary travels: files, fresh processes, pickles, subword pieces."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_compact_embeddings.checkpoints import changed_code
from hf_compact_embeddings.modeling.code_files import shipped_files
from hf_compact_embeddings.modeling.errors import CheckpointError, CompactConfigError
from hf_compact_embeddings.modeling.hashing import HashSettings
from hf_compact_embeddings.modeling.subword_pieces import SubwordPieces
from hf_compact_embeddings.modeling.tokenization_hash import CompactHashTokenizer

from ..cases import TINY_CASES, compress_tiny
from ..tools import PACKAGE, last_json, run_python

HASHES = pytest.mark.parametrize("hashing", ["md", "lsh"])
TEXTS = ["one two three four five six seven", "a b", "", "alpha beta gamma delta"]
PAIRS = ["x y z", "p q r s t u v w", "k", ""]


@HASHES
def test_what_is_saved_is_what_is_loaded(hashing: str, tmp_path: Path) -> None:
    tokenizer = CompactHashTokenizer(
        hashing=hashing, ngram_sizes=(3, 4), hash_seed=11, model_max_length=128, padding_side="left"
    )
    tokenizer.save_pretrained(tmp_path / "one")
    loaded = CompactHashTokenizer.from_pretrained(tmp_path / "one")
    assert loaded.hash_settings == tokenizer.hash_settings
    assert loaded(TEXTS, PAIRS, padding=True).data == tokenizer(TEXTS, PAIRS, padding=True).data
    assert (loaded.model_max_length, loaded.padding_side) == (128, "left")
    loaded.save_pretrained(tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [name for name in files if not name.endswith(".py")] == ["tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    config = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())
    assert config["auto_map"] == {"AutoTokenizer": ["tokenization_hash.CompactHashTokenizer", None]}
    assert HashSettings.from_dict(config) == tokenizer.hash_settings
    other = CompactHashTokenizer.from_pretrained(tmp_path / "one", hashing="md", hash_seed=0)
    assert other("a").data == CompactHashTokenizer()("a").data


def test_a_process_without_the_package_gives_the_same_ids(tmp_path: Path) -> None:
    # Python draws another hash seed for that process.
    texts = ["Grüße, 世界! 🇩🇪 e\u0301", "naïve coöperate"]
    expected = {}
    for hashing in ("md", "lsh"):
        tokenizer = CompactHashTokenizer(hashing=hashing, hash_seed=3)
        tokenizer.save_pretrained(tmp_path / hashing)
        expected[hashing] = {
            name: tensor.tolist() for name, tensor in tokenizer(texts, padding=True, return_tensors="pt").items()
        }
    code = """
    import json, sys
    from transformers import AutoTokenizer
    texts, *folders = sys.argv[1:]
    found = {}
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert type(tokenizer).__module__.startswith("transformers_modules")
        tokenizer.save_pretrained(folder + "/again")
        tokenizer = AutoTokenizer.from_pretrained(folder + "/again", trust_remote_code=True)
        batch = tokenizer(json.loads(texts), padding=True, return_tensors="pt")
        found[folder.rpartition("/")[2]] = {name: tensor.tolist() for name, tensor in batch.items()}
    print(json.dumps(found))
    """
    folders = [tmp_path / hashing for hashing in expected]
    output = run_python(code, json.dumps(texts), *folders, home=tmp_path / "home", without_package=True)
    assert last_json(output) == expected
    shipped = shipped_files(PACKAGE / "modeling" / "tokenization_hash.py")
    for folder in (*folders, *(folder / "again" for folder in folders)):
        assert {path.name: path.read_bytes() for path in folder.glob("*.py")} == shipped, folder


def test_saved_beside_a_model_it_leaves_the_models_code_as_it_was(tmp_path: Path) -> None:
    _, compact = compress_tiny("bert", TINY_CASES["hash"][0])
    compact.save_pretrained(tmp_path)
    CompactHashTokenizer().save_pretrained(tmp_path)
    assert changed_code(tmp_path) == []


@HASHES
def test_copies_and_pickles_are_the_same_tokenizer(hashing: str) -> None:
    tokenizer = CompactHashTokenizer(hashing=hashing)
    fresh = pickle.dumps(tokenizer)
    expected = tokenizer(TEXTS, padding=True)
    assert pickle.dumps(tokenizer) == fresh, "what is cached must not change a pickle, or datasets' fingerprint"
    for other in (pickle.loads(fresh), copy.deepcopy(tokenizer)):
        assert other(TEXTS, padding=True).data == expected.data
    assert pickle.loads(pickle.dumps(expected)).word_ids(0) == expected.word_ids(0)


def test_subwords_can_be_the_pieces(tmp_path: Path) -> None:
    pieces = {token: index for index, token in enumerate(["[UNK]", *"abcdefgh", "##a", "##b", "##c", "ab", "##ab"])}
    backend = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    subwords = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer = CompactHashTokenizer(hashing="lsh", subword_tokenizer=subwords)
    # ab ##ab; then a and b ##ab, ab and ab, ab ##a and b.
    assert SubwordPieces(subwords.backend_tokenizer.to_str())("abab") == {"ab", "##ab", "a", "b", "##a"}
    tokenizer.save_pretrained(tmp_path)
    loaded = CompactHashTokenizer.from_pretrained(tmp_path)
    assert loaded(["abc cab", "h"]).data == tokenizer(["abc cab", "h"]).data
    assert loaded(["abc"])["input_ids"] != CompactHashTokenizer(hashing="lsh")(["abc"])["input_ids"]
    assert pickle.loads(pickle.dumps(loaded))("abc").data == tokenizer("abc").data
    file = tmp_path / "subword_pieces.json"
    file.write_text(file.read_text().replace("##c", "##d"))
    with pytest.raises(CheckpointError, match="subword_pieces.json"):
        CompactHashTokenizer.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        CompactHashTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CompactConfigError, match="`pieces`"):
        CompactHashTokenizer(hashing="md", subword_tokenizer=subwords)
    with pytest.raises(CompactConfigError, match="`subword_tokenizer`"):
        CompactHashTokenizer(hashing="lsh", subword_tokenizer=CompactHashTokenizer())
