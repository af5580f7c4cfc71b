"""What a fit is given about a table, gathered once: evidence in, a `FitSource` out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..fitting import FitSource
from ..modeling.errors import CompactConfigError, CompactEmbeddingsError, config_error
from ..modeling.structure import CompactEmbedding
from ..progress import stage, tell
from .exact_rows import exact_rows
from .frequencies import count_tokens, counts_from_tokenizer, given_counts
from .made_texts import made_texts
from .overrated import overrated_rows
from .sensitivity import Sensitivity, find_sensitivity, scoring_heads
from .states import contextual_states
from .tables import Table, padding_of
from .texts import Texts, read_texts
from .word_frequencies import Language, counts_of_words, is_available, languages_for, languages_in, require_known

logger = logging.get_logger(__name__)

# What a method may need. Texts and contextual states must be had; the others are given where they can be.
NEEDS = ("counts", "texts", "token_strings", "contextual_states", "sensitivity")
_UNMET = {
    "texts": "`texts` is missing: the method reads texts, with a `tokenizer`.",
    "contextual_states": "`features` is 'contextual', but contextual states need a `tokenizer`.",
}
# Where counts come from.
CountsFrom = Literal["given", "texts", "words", "tokenizer", "uniform"]
_COUNTS_IN_WORDS: dict[CountsFrom, str] = {
    "given": "token counts that were given",
    "texts": "tokens counted in texts",
    # Where the vocabulary shows no language.
    "words": "token frequencies as far as the tokenizer tells",
    "tokenizer": "token frequencies as far as the tokenizer tells",
    "uniform": "all tokens alike",
}
# Of the words' frequencies and the tokenizer's own, which knows of what no list of words holds. Where languages were
# asked for, it knows above all of others.
_SHARE_OF_WORDS, _SHARE_OF_ASKED_WORDS = 0.75, 0.98
# Of words of the languages that texts are written in, beside what was counted in these.
_SHARE_BESIDE_TEXTS = 0.5
# What is found once for all tables of a model.
_OF_ALL_TABLES = ("_told_counts", "languages", "token_strings", "readable_texts", "contextual_states")


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about the rows of a table; what takes a pass over texts is found when it is first asked for.

    Attributes:
        model: the dense model.
        table: its input table, or that of a head.
        tokenizer: the model's tokenizer, if there is one.
        texts: texts like those that the model will read, if there are any.
        counts_from: where counts come from.
        given_counts: counts (V,) that were given, if they were.
        asked_languages: whose words stand for texts; None: all that the vocabulary shows.
        seed: of all random choices.
        device: where to fit.
        findings: what fits find on their way, for the next ones.
    """

    model: PreTrainedModel
    table: Table
    tokenizer: PreTrainedTokenizerBase | None
    texts: Texts | None
    counts_from: CountsFrom
    given_counts: Tensor | None
    asked_languages: list[str] | None
    seed: int
    device: torch.device
    findings: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> Tensor:
        """The rows of the table (V, D)."""
        return self.table.module.weight.detach()

    @cached_property
    def counts(self) -> Tensor | None:
        """How often each token occurs (V,), or None where nothing tells."""
        counted, shares = self._told_counts, self.languages_of_texts
        if counted is None or self.tokenizer is None or not shares:
            return counted
        with stage("Counting tokens"):
            found, size = languages_for(self.tokenizer)[0], len(counted)
            parts = [
                share * counts_of_words({code: found[code]}, self.tokenizer, size) for code, share in shares.items()
            ]
        words = torch.stack(parts).sum(0)
        return (1 - _SHARE_BESIDE_TEXTS) * counted * (words.sum() / counted.sum()) + _SHARE_BESIDE_TEXTS * words

    @cached_property
    def languages_of_texts(self) -> dict[str, float]:
        """Languages that texts are written in, and their shares, where words of these count beside them.

        A few texts hold few of their languages' words. Not where a head scores through the table: what it gives is what
        comes next in these very texts.
        """
        counted = self._told_counts
        if self.counts_from != "texts" or self.tokenizer is None or counted is None or not is_available():
            return {}
        if scoring_heads(self.model, self.table):
            return {}
        with stage("Counting tokens"):
            return languages_in(counted, languages_for(self.tokenizer)[0], self.tokenizer)

    @cached_property
    def _told_counts(self) -> Tensor | None:
        """Counts (V,) as whatever they come from tells them."""
        if self.counts_from in ("given", "uniform") or self.tokenizer is None:
            return self.given_counts
        with stage("Counting tokens"):
            return self._counted(self.tokenizer)

    def _counted(self, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
        """Count tokens where the counts come from."""
        rows = len(self.rows)
        if self.counts_from == "texts" and self.texts is not None:
            return count_tokens(self.texts, tokenizer, rows)
        own = counts_from_tokenizer(tokenizer, rows)
        if not self.languages:
            return own
        words = counts_of_words(self.languages, tokenizer, rows)
        if own is None:
            return words
        share = _SHARE_OF_WORDS if self.asked_languages is None else _SHARE_OF_ASKED_WORDS
        return share * words + (1 - share) * own * (words.sum() / own.sum())

    @cached_property
    def languages(self) -> dict[str, Language]:
        """The languages whose words are counted, none where counts come from elsewhere."""
        if self.counts_from != "words" or self.tokenizer is None:
            return {}
        found, without = languages_for(self.tokenizer, self.asked_languages)
        for code in without:
            logger.warning(f"The tokenizer gives no known tokens for the language {code!r}: it is left out.")
        if self.asked_languages is None and len(found) > 1:
            tell(
                f"The vocabulary shows {len(found)} languages, which share the bits alike: {', '.join(found)}. Naming "
                "those that the model is for (`languages=`, `--language`) leaves these closer to the original."
            )
        return found

    @cached_property
    def token_strings(self) -> list[str] | None:
        """How the tokens are written (V of them), or None without a tokenizer."""
        if self.tokenizer is None:
            return None
        # Tables often have more rows than the tokenizer has tokens.
        known = {token_id: token for token, token_id in self.tokenizer.get_vocab().items()}
        return [known.get(row, f"[unused row {row}]") for row in range(len(self.rows))]

    @cached_property
    def readable_texts(self) -> Texts | None:
        """The texts that were given, or else texts that are made; None without a tokenizer."""
        if self.texts is not None or self.tokenizer is None:
            return self.texts
        return read_texts(self.made_texts(self.tokenizer, self.seed))

    def made_texts(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
        """Make texts; another seed gives others."""
        counts = torch.ones(len(self.rows)) if self.counts is None else self.counts
        with stage("Making texts"):
            return made_texts(self.model, tokenizer, counts, self.languages, seed)

    @cached_property
    def contextual_states(self) -> Tensor:
        """Each token's mean contextual state (V, H)."""
        texts = self.readable_texts
        if texts is None or self.tokenizer is None:
            raise CompactConfigError(_UNMET["contextual_states"])
        with stage("Reading states"):
            return contextual_states(texts, self.tokenizer, self.model)

    @cached_property
    def sensitivity(self) -> Sensitivity | None:
        """What errors in rows cost; None where it cannot be found."""
        texts = self.readable_texts
        if self.tokenizer is None or texts is None:
            return None
        try:
            with stage("Reading sensitivities"):
                return find_sensitivity(texts, self.tokenizer, self.model, self.seed, self.table)
        except CompactEmbeddingsError:
            raise
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # Models that read something else than tokens alone, or run in a way of their own.
            name, reads = type(self.model).__name__, self.model.main_input_name
            reason = error if reads == "input_ids" else f"it reads `{reads}`, and no texts"
            logger.warning(f"How sensitive {name} is to errors could not be found, so all count alike: {reason}")
            return None

    def in_words(self, needs: Collection[str]) -> str:
        """Say what a fit with these needs is told beside the table."""
        made = "texts" if self.texts is not None else "texts made for it"
        found = []
        if "counts" in needs and self.counts is not None:
            by_words = f"word frequencies ({', '.join(self.languages)})" if self.languages else None
            beside = f", with more words ({', '.join(self.languages_of_texts)})" if self.languages_of_texts else ""
            found.append(by_words or _COUNTS_IN_WORDS[self.counts_from] + beside)
        if "sensitivity" in needs and self.sensitivity is not None:
            found.append(f"sensitivity to errors, read from {made}")
        if "contextual_states" in needs:
            found.append(f"contextual states, read from {made}")
        if self.tokenizer is not None:
            found.append("the special tokens")
        return ", ".join(found) or "nothing"

    def overrated_rows(self, needs: Collection[str], structure: CompactEmbedding, most: int) -> Tensor:
        """Return the ids of rows that a head would give far too often after a fit, as far as texts have shown."""
        sensitivity = self.sensitivity if "sensitivity" in needs else None
        if sensitivity is None or sensitivity.states is None:
            return torch.empty(0, dtype=torch.int64)
        return overrated_rows(structure, self.rows, sensitivity.states, most)

    def exact_rows(self, private_rows: int = 0) -> Tensor:
        """Return the sorted ids of the rows to keep: padding, special tokens, the most frequent up to `private_rows`.

        Where neither counts nor texts tell which are the most frequent, more than the first two cannot be had.
        """
        # Counting takes a pass over all texts, which nothing is gained by where the other rows suffice.
        kept = exact_rows(self.table, self.tokenizer, None)
        return kept if len(kept) >= private_rows else exact_rows(self.table, self.tokenizer, self.counts, private_rows)

    def _uses(self, sensitivity: Sensitivity | None) -> Tensor | None:
        """Return how often each row (V,) matters: when it is read, and, to a head, when it might be next."""
        doubts = None if sensitivity is None else sensitivity.doubts
        if doubts is None or self.counts is None:
            return self.counts
        # For an untied head too: what texts hold is what comes next in them. By doubts alone, which few texts show,
        # predictions of SmolLM2 were up to a tenth further from the original's.
        return (self.counts + doubts * (self.counts.sum() / doubts.sum().clamp(min=1e-30))) / 2

    def of(self, table: Table) -> Evidence:
        """Return what is known about another table of the model, without reading again what this one knows too."""
        if table is self.table:
            return self
        other = dataclasses.replace(self, table=table, findings={})
        vars(other).update({name: vars(self)[name] for name in _OF_ALL_TABLES if name in vars(self)})
        if vars(self).get("sensitivity", self) is None:
            # What kept it from being found for this table would do so again, with the same warning.
            vars(other)["sensitivity"] = None
        return other

    def fit_source(
        self,
        needs: Collection[str] = ("counts",),
        *,
        private_rows: int = 0,
        from_scratch: bool = False,
        also_exact: Tensor | None = None,
    ) -> FitSource:
        """Return what a fit starts from.

        Args:
            needs: out of NEEDS; nothing else is looked for.
            private_rows: rows to keep exactly, at least the padding row and special tokens.
            from_scratch: nothing is fitted, so that no row is kept and nothing is read.
            also_exact: ids of more rows to keep exactly.
        """
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"A method needs {sorted(unknown)}, but there are {', '.join(NEEDS)}.")
        if from_scratch:
            needs = ()
        if "texts" in needs and (self.texts is None or self.tokenizer is None):
            raise CompactConfigError(_UNMET["texts"])
        exact = torch.empty(0, dtype=torch.int64) if from_scratch else self.exact_rows(private_rows)
        if also_exact is not None:
            exact = torch.cat([exact, also_exact]).unique()
        sensitivity = self.sensitivity if "sensitivity" in needs else None
        return FitSource(
            table=self.rows,
            counts=self._uses(sensitivity) if "counts" in needs else None,
            features=self.contextual_states if "contextual_states" in needs else None,
            metric=None if sensitivity is None else sensitivity.metric,
            tied=bool(scoring_heads(self.model, self.table)),
            token_strings=self.token_strings if "token_strings" in needs else None,
            private_ids=exact,
            padding_idx=padding_of(self.table),
            scale=self.table.scale,
            seed=self.seed,
            device=self.device,
            findings=self.findings,
        )


def gather(
    model: PreTrainedModel,
    table: Table,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token_counts: Any = None,
    texts: Any = None,
    languages: Iterable[str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Evidence:
    """Return what is known about a table, checked as far as that takes no time.

    Args:
        model: the dense model.
        table: its input table, or that of a head.
        tokenizer: the model's tokenizer.
        token_counts: how often each token occurs (V,); or where that is to be taken from: "words", the frequencies of
            words in `languages`; "tokenizer", as far as that itself tells; "uniform", all alike. By default from
            `texts`, else from words where the package `wordfreq` is installed, else from the tokenizer.
        texts: texts, or where they are, as `read_texts` takes them.
        languages: codes of languages, as "de"; by default all that the vocabulary shows.
        seed: of all random choices.
        device: where to fit; by default a GPU where there is one.
    """
    if texts is not None and tokenizer is None:
        raise CompactConfigError("`tokenizer` is missing: `texts` cannot be read without it.")
    if languages is not None:
        languages = [languages] if isinstance(languages, str) else list(languages)
        by_words = token_counts is None or (isinstance(token_counts, str) and token_counts == "words")
        if tokenizer is None or not by_words:
            raise CompactConfigError('`languages` needs a `tokenizer`, and no other `token_counts` than "words".')
        require_known(languages)
    if isinstance(token_counts, str):
        if token_counts not in ("words", "tokenizer", "uniform") or tokenizer is None:
            allowed = 'it must be counts, or "words", "tokenizer" or "uniform" with a `tokenizer`'
            raise config_error("token_counts", token_counts, allowed)
        counts_from: CountsFrom = token_counts  # type: ignore[assignment]
    elif token_counts is not None:
        counts_from = "given"
    elif texts is not None and languages is None:
        counts_from = "texts"
    else:
        counts_from = "words" if languages is not None or is_available() else "tokenizer"
    return Evidence(
        model,
        table,
        tokenizer,
        None if texts is None else read_texts(texts),
        counts_from,
        given_counts(token_counts, len(table.module.weight)) if counts_from == "given" else None,
        languages,
        seed,
        _device(device),
    )


def _device(asked: str | torch.device | None) -> torch.device:
    """Return where to fit; raise if there is no such device here."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    # What a build of torch raises that has no such device is an AssertionError or NotImplementedError.
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise config_error("device", str(asked), f"there is no such device here: {reason}") from error
    return device
