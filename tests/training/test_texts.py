"""From texts to batches: rows of ids are the same wherever they are read."""

from __future__ import annotations

import pytest
import torch

import hf_compact_embeddings as hce
from hf_compact_embeddings.training.rows import Collator, Encoder, HeldRows, split_batch

from ..tools import tiny_texts, tiny_tokenizer


def test_pairs_stay_among_texts_and_keep_their_types() -> None:
    texts = ["w5 w6", ("w7", "w8 w9"), "w10", ("w11 w12", "w13")]
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = list(Encoder(tokenizer, 16, None, 0.0, 0).rows(texts))
    first, second = (rows[place]["input_ids"].tolist() for place in (0, 1))
    start, stop = first[0], first[-1]
    assert second == [start, second[1], stop, *second[3:5], stop] and len({*first[1:-1], *second}) == 7
    assert [len(row["input_ids"]) for row in rows] == [4, 6, 3, 6]
    assert [row["token_type_ids"] for row in rows] == [[0] * 4, [0, 0, 0, 1, 1, 1], [0] * 3, [0, 0, 0, 0, 1, 1]]
    batch = Collator(tokenizer)(rows)
    assert batch["token_type_ids"].tolist()[1] == [0, 0, 0, 1, 1, 1] and batch["token_type_ids"].shape == (4, 6)
    with pytest.raises(hce.CompactConfigError, match="`texts` has pairs of texts, but losses at predicted tokens"):
        list(Encoder(tiny_tokenizer(), 16, "masked", 0.1, 0).rows(texts))


def test_the_places_of_a_row_depend_on_the_row_alone() -> None:
    encoder = Encoder(tiny_tokenizer(), 16, "masked", 0.3, seed=1)
    rows = list(encoder.rows(tiny_texts(20)))
    again = list(encoder.rows(iter(tiny_texts(20))))
    other = list(Encoder(tiny_tokenizer(), 16, "masked", 0.3, seed=2).rows(tiny_texts(20)))
    assert len(rows) == 20 * 8 // 14
    assert all(torch.equal(a["positions"], b["positions"]) for a, b in zip(rows, again, strict=True))
    assert not all(torch.equal(a["positions"], b["positions"]) for a, b in zip(rows, other, strict=True))
    for row in rows:
        assert row["positions"].any() and not row["positions"][[0, -1]].any()
        assert (row["input_ids"][row["positions"]] == 4).all() and (row["targets"] >= 5).all()
    share = torch.stack([row["positions"] for row in rows]).float().mean()
    assert 0.15 < share < 0.4


def test_next_tokens_are_predicted_everywhere_but_at_the_end() -> None:
    row = next(Encoder(tiny_tokenizer(), 8, "next", 1.0, seed=0).rows(tiny_texts(3)))
    assert row["positions"].tolist() == [True] * 7 + [False]
    assert torch.equal(row["targets"], row["input_ids"][1:])


def test_batches_put_everything_where_its_token_is() -> None:
    for side in ("right", "left"):
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = side
        rows = HeldRows(Encoder(tokenizer, 16, None, 0.0, 0).rows(["w7 w8", "w9 w10 w11 w12"])).rows
        for row in rows:
            ids = row["input_ids"]
            row |= {"positions": ids > 10, "targets": ids[ids > 10], "teacher_states": ids.float().unsqueeze(-1)}
        inputs, positions, labels, target = split_batch(Collator(tokenizer)(rows))
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        assert ids.shape == (2, 6) and mask.sum() == 10
        assert torch.equal(target.layers[0].squeeze(-1)[mask], ids[mask].float())
        assert not target.layers[0][~mask].any()
        assert torch.equal(ids[positions], labels) and labels.tolist() == [11, 12]


def test_a_tokenizer_without_padding_is_told() -> None:
    tokenizer = tiny_tokenizer()
    rows = list(Encoder(tokenizer, 16, None, 0.0, 0).rows(["w7 w8", "w9 w10 w11 w12"]))
    tokenizer.pad_token = None
    with pytest.raises(hce.CompactConfigError, match="no padding token"):
        Collator(tokenizer)(rows)
    assert Collator(tokenizer)(rows[:1])["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_texts_without_tokens() -> None:
    with pytest.raises(hce.CompactConfigError, match="too short"):
        HeldRows(Encoder(tiny_tokenizer(), 16, None, 0.0, 0).rows(["[SEP]", "[PAD]"]))
    with pytest.raises(hce.CompactConfigError, match="The text has 2 tokens, but a piece needs 14"):
        HeldRows(Encoder(tiny_tokenizer(), 16, "masked", 0.1, 0).rows(["w5 w6"]))
