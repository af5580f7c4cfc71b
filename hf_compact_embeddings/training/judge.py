"""What held-out texts say of a model that is calibrated: the one figure that decides how far it goes from its fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evidence.texts import Text
from ..modeling.errors import CompactEmbeddingsError, config_error
from ..progress import steps
from .calibration import encoder_for
from .losses import Target, need_whole_scores, predicts, run, target_of, total_loss
from .recipes import Recipe
from .rows import Collator, HeldRows, Row, split_batch

# Models are compared on the same tokens, so that few tell them apart; each is to be predicted five times.
_PREDICTED_TOKENS = 4096


class Judge:
    """The loss on held-out texts; of a language model the divergence of its predictions alone."""

    def __init__(
        self,
        fit: PreTrainedModel,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        texts: list[Text],
        seed: int,
    ) -> None:
        """Read the texts as training reads them.

        Args:
            fit: a model like those that are to be judged.
            teacher: that they are compared with.
            tokenizer: of all.
            recipe: of their training.
            texts: that none of them learned from.
            seed: of the choice of predicted tokens.
        """
        self.teacher, self.losses = teacher, recipe.judged_by
        encoder = encoder_for(fit, tokenizer, self.losses, recipe.max_length, None, seed)
        rows = list(_few(HeldRows(encoder.rows(texts)).rows))
        collator = Collator(tokenizer)
        self.batches = [
            {name: value.to(fit.device) for name, value in collator(rows[start : start + recipe.batch]).items()}
            for start in range(0, len(rows), recipe.batch)
        ]
        self._whole_scores: bool | None = None
        self._said: dict[int, Target] = {}

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> float:
        """Return the mean loss of a row."""
        model.eval()
        total, count = 0.0, 0
        for number in steps(list(range(len(self.batches))), "Reading held-out texts"):
            size = len(self.batches[number]["input_ids"])
            total += size * self._loss(model, number)
            count += size
        return total / count

    def _loss(self, model: PreTrainedModel, number: int) -> float:
        fields, positions, labels, _ = split_batch(self.batches[number])
        shown = positions if predicts(self.losses) else None
        mask = fields["attention_mask"]
        try:
            if self._whole_scores is None:
                self._whole_scores = shown is None or need_whole_scores(model, self.teacher, fields)
            target = self._target(number, fields, shown, self._whole_scores)
            student = run(model, model, fields, shown, self._whole_scores)
        except CompactEmbeddingsError:
            raise
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # Models that read something else than tokens alone, or run in a way of their own.
            name = type(self.teacher).__name__
            allowed = f"a {name} cannot be run on tokens alone, as calibration does: {error}"
            raise config_error("effort", "best", allowed) from error
        return float(total_loss(student, target, mask, labels, self.losses)[0])

    def _target(self, number: int, fields: dict[str, Tensor], shown: Tensor | None, whole_scores: bool) -> Target:
        """Return what the teacher says of a batch: kept where that is only what its scores are made of."""
        if number in self._said:
            return self._said[number]
        said = target_of(
            run(self.teacher, self.teacher, fields, shown, whole_scores), fields["attention_mask"], self.losses
        )
        if not whole_scores:
            self._said[number] = said
        return said


def _few(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows until enough tokens are predicted in them; all of them where none are."""
    left = _PREDICTED_TOKENS
    for row in rows:
        if left <= 0:
            return
        yield row
        left -= len(row.get("targets", ()))
