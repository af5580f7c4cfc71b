"""The losses of calibration: how far a compact model's outputs are from the original's, or from the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..kernels.score_tiles import Predictor, can_predict_in_tiles, log_probabilities
from ..model_outputs import (
    gives_scores_as_they_are,
    is_causal_lm,
    is_masked_lm,
    mean_pooled,
    output_layer,
    scored_at,
    unscored_at,
)
from ..modeling.errors import CompactConfigError
from .divergence import divergence

# What each loss asks of the teacher; "labels" asks the text alone.
LOSSES = ("states", "all_states", "sentence", "relations", "logits", "labels")
# Among a few sentences the cosines may all be equal by chance.
_LEAST_SPREAD = 0.01
_NEED_PLACES = {"logits", "labels"}
_NEED_TEACHER = set(LOSSES) - {"labels"}


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model says about a batch.

    Attributes:
        layers: hidden states (B, T, H), the final ones last; of an encoder-decoder the encoder's.
        logits: scores (n, V) at the predicted positions.
        predictor: what these would be made of, where they are not held.
    """

    layers: tuple[Tensor, ...]
    logits: Tensor | None
    predictor: Predictor | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """What the teacher said about a batch, as far as the losses ask; the rest is None.

    Attributes:
        layers: hidden states (B, T, H): the final ones, or those of all layers.
        sentence: mean-pooled vectors (B, H).
        logits: scores (n, V) at the predicted positions.
        predictor: what these would be made of, where they are not held.
        best_ids: the best tokens (n, k) at the predicted positions, where only those were kept.
        best_scores: their log-probabilities (n, k).
    """

    layers: tuple[Tensor, ...] | None = None
    sentence: Tensor | None = None
    logits: Tensor | None = None
    predictor: Predictor | None = None
    best_ids: Tensor | None = None
    best_scores: Tensor | None = None


def choose_losses(
    compact: PreTrainedModel, teacher: bool, losses: Mapping[str, float] | None, final_states_only: bool = False
) -> dict[str, float]:
    """Return the weight of each loss: as asked for, or those that suit the model.

    Args:
        compact: the model to train.
        teacher: whether there is a teacher.
        losses: weights of "states" or "all_states" (hidden states), "sentence" (mean-pooled vectors), "relations"
            (cosines among the sentences of a batch), "logits" (divergence at the predicted tokens) and "labels" (the
            tokens themselves). By default logits for a causal model, with states for a masked LM; all states, sentence
            and relations for any other.
        final_states_only: whether no other states are at hand, which matters where nothing is asked for.
    """
    scores_tokens = is_masked_lm(compact) or is_causal_lm(compact)
    if losses is None:
        if not teacher and not scores_tokens:
            raise CompactConfigError(
                f"`teacher` is missing: a {type(compact).__name__} has no masked-LM or causal head to learn with alone."
            )
        if not teacher:
            losses = {"labels": 1.0}
        elif is_causal_lm(compact):
            losses = {"logits": 1.0}
        elif scores_tokens:
            losses = {"logits": 1.0, "states": 1.0}
        elif final_states_only:
            losses = {"states": 1.0, "sentence": 1.0, "relations": 1.0}
        else:
            losses = {"all_states": 2.0, "sentence": 1.0, "relations": 1.0}
    unknown = sorted(set(losses) - set(LOSSES))
    if unknown or not losses:
        raise CompactConfigError(
            f"`losses` names {', '.join(map(repr, unknown)) or 'no loss'}, but allowed are {', '.join(LOSSES)}."
        )
    wrong = {name: weight for name, weight in losses.items() if not isinstance(weight, int | float) or not weight > 0}
    if wrong:
        raise CompactConfigError(f"`losses` has the weights {wrong}, but a weight must be a number above 0.")
    if not teacher and (needing := sorted(_NEED_TEACHER & set(losses))):
        raise CompactConfigError(f"`teacher` is missing, but the losses {', '.join(needing)} compare with one.")
    if not scores_tokens and (needing := sorted(_NEED_PLACES & set(losses))):
        raise CompactConfigError(
            f"`losses` names {', '.join(needing)}, but a {type(compact).__name__} has no masked-LM or causal head."
        )
    if {"states", "all_states"} <= set(losses):
        raise CompactConfigError("`losses` names both states and all_states, but all_states holds the final ones too.")
    return {name: float(weight) for name, weight in losses.items()}


def predicts(losses: Mapping[str, float]) -> bool:
    """Tell whether tokens are predicted, so that positions for it must be chosen."""
    return bool(_NEED_PLACES & set(losses))


def need_whole_scores(student: PreTrainedModel, teacher: PreTrainedModel | None, inputs: Mapping[str, Tensor]) -> bool:
    """Tell whether the scores (n, V) of all predicted tokens must be held: losses can take some rows at a time.

    Args:
        student: the model that trains.
        teacher: the original, if it is asked.
        inputs: of their `forward`, to try them with.
    """
    return not all(
        can_predict_in_tiles(model.get_output_embeddings()) and gives_scores_as_they_are(model, inputs)
        for model in (student, teacher)
        if model is not None
    )


def run(
    model: torch.nn.Module,
    owner: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    positions: Tensor | None,
    whole_scores: bool = True,
) -> Outputs:
    """Run a model on a batch.

    Args:
        model: the model, or what a launcher has wrapped around it.
        owner: the model itself.
        inputs: of its `forward`.
        positions: where tokens are predicted (B, T); None where that is not asked.
        whole_scores: hold the scores of these; without, only what they are made of.
    """
    extra = {"decoder_input_ids": inputs["input_ids"][:, :1]} if owner.config.is_encoder_decoder else {}
    options = {"output_hidden_states": True, "return_dict": True}
    if positions is not None and not whole_scores:
        with unscored_at(owner, positions) as entering:
            outputs = model(**inputs, **extra, **options)
        return Outputs(tuple(outputs.hidden_states), None, Predictor(entering[0], output_layer(owner)))
    with scored_at(owner, positions):
        outputs = model(**inputs, **extra, **options)
    layers = outputs.encoder_hidden_states if owner.config.is_encoder_decoder else outputs.hidden_states
    return Outputs(tuple(layers), None if positions is None else outputs.logits)


@torch.no_grad()
def target_of(outputs: Outputs, mask: Tensor, losses: Mapping[str, float]) -> Target:
    """Return what the losses ask of the teacher's outputs."""
    layers = outputs.layers if "all_states" in losses else outputs.layers[-1:] if "states" in losses else None
    pooled = mean_pooled(outputs.layers[-1], mask) if {"sentence", "relations"} & set(losses) else None
    asked = "logits" in losses
    return Target(layers, pooled, outputs.logits if asked else None, outputs.predictor if asked else None)


def total_loss(
    student: Outputs,
    target: Target,
    mask: Tensor,
    labels: Tensor | None,
    losses: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the losses, and each without its weight.

    Args:
        student: outputs of the model that trains.
        target: what the teacher said.
        mask: 1 for tokens, 0 for padding (B, T).
        labels: the ids (n,) at the predicted positions.
        losses: weights by name.
    """
    parts: dict[str, Tensor] = {}
    if "states" in losses and target.layers is not None:
        parts["states"] = states_loss(student.layers[-1], target.layers[-1], mask)
    if "all_states" in losses and target.layers is not None:
        pairs = zip(student.layers, target.layers, strict=True)
        parts["all_states"] = torch.stack([states_loss(one, other, mask) for one, other in pairs]).mean()
    if target.sentence is not None:
        pooled = mean_pooled(student.layers[-1], mask)
        if "sentence" in losses:
            parts["sentence"] = sentence_loss(pooled, target.sentence)
        if "relations" in losses:
            parts["relations"] = relations_loss(pooled, target.sentence)
    if "logits" in losses and (student.logits is not None or student.predictor is not None):
        parts["logits"] = logits_loss(student, target)
    if "labels" in losses and labels is not None and student.predictor is not None:
        parts["labels"] = -log_probabilities(student.predictor, labels.unsqueeze(-1)).mean()
    elif "labels" in losses and labels is not None and student.logits is not None:
        parts["labels"] = F.cross_entropy(student.logits.float(), labels)
    missing = sorted(set(losses) - set(parts))
    if missing:
        raise CompactConfigError(f"The teacher's outputs hold nothing for the losses {', '.join(missing)}.")
    return torch.stack([losses[name] * part for name, part in parts.items()]).sum(), parts


def states_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the squared error of states (B, T, H) over the teacher's squares, so that 1 means that nothing is left."""
    kept = mask.bool()
    goal = teacher[kept].float()
    return (student[kept].float() - goal).square().sum() / goal.square().sum().clamp(min=1e-12)


def sentence_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 less the mean cosine of sentence vectors (B, H)."""
    return 1 - F.cosine_similarity(student, teacher.float(), dim=-1).mean()


def relations_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error of the cosines among sentences, over their spread in the teacher's eyes."""
    if len(student) < 2:
        return student.sum() * 0.0
    first, second = torch.triu_indices(len(student), len(student), offset=1, device=student.device)
    cosines = [unit @ unit.T for unit in (F.normalize(vectors.float(), dim=-1) for vectors in (student, teacher))]
    goal = cosines[1][first, second]
    return (cosines[0][first, second] - goal).square().mean() / goal.var(correction=0).clamp(min=_LEAST_SPREAD)


def logits_loss(student: Outputs, target: Target) -> Tensor:
    """Return the mean Kullback-Leibler divergence from the teacher's distributions to a student's."""
    if student.predictor is not None and target.predictor is not None:
        return divergence(student.predictor, target.predictor)
    if student.logits is not None and target.logits is not None:
        scores = student.logits.float().log_softmax(-1)
        return F.kl_div(scores, target.logits.float().log_softmax(-1), reduction="batchmean", log_target=True)
    if target.best_ids is None or target.best_scores is None:
        raise CompactConfigError("The teacher's outputs hold nothing for the losses logits.")
    # All tokens beyond the best ones count as one: a lower bound of the divergence, and zero where it is zero.
    if student.predictor is not None:
        found = log_probabilities(student.predictor, target.best_ids)
    else:
        assert student.logits is not None
        found = student.logits.float().log_softmax(-1).gather(-1, target.best_ids)
    goal, found = _with_rest(target.best_scores.float()), _with_rest(found)
    return (goal.exp() * (goal - found)).sum(-1).mean()


def _with_rest(scores: Tensor) -> Tensor:
    """Append the log-probability (n, 1) of everything that log-probabilities (n, k) leave over."""
    rest = (1 - scores.exp().sum(-1, keepdim=True)).clamp(min=1e-6).log()
    return torch.cat([scores, rest], dim=-1)
