"""How much less a compact model scores than the dense one, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .tasks import Values

_DRAWS = 500


def difference(
    measure: Callable[[Values], float],
    dense: Mapping[str, Values],
    compact: Mapping[str, Values],
    names: Sequence[str],
    seed: int = 0,
) -> dict[str, float]:
    """Return the mean difference over languages, and the bounds between which 95 % of paired resamples lie.

    Both models are judged by the same items in each resample, drawn with replacement within a language.
    """
    drawn = np.random.default_rng(seed)

    def mean(pick: Callable[[int], np.ndarray]) -> float:
        losses = []
        for name in names:
            items = pick(len(dense[name]))
            losses.append(measure(compact[name][items]) - measure(dense[name][items]))
        return float(np.mean(losses))

    draws = [mean(lambda count: drawn.integers(0, count, count)) for _ in range(_DRAWS)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": round(mean(np.arange), 3), "low": round(float(low), 3), "high": round(float(high), 3)}
