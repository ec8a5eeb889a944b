"""Contributions against the games that the model plays: Shapley values and interactions.

The sign of a redundancy: if F = sum_i u_i + r + s, where modality i alone says u_i + r and s is said by all together alone,
then the interaction F - sum_i (u_i + r) is s - (n - 1) r. So synergy should rise with the interaction and redundancy fall, and
an explanation whose parts mean what they are called has synergy - (n - 1) x redundancy equal to it.
"""

from collections.abc import Sequence

import numpy as np

from service.bundle.validity import Estimate, InteractionFigures, PairInteraction, ShapleyAgreement
from training.validity.estimates import Floats, first, pearson, products, ranks, row_spearman
from training.validity.games import interaction_share, interactions, pairs, shapley_values
from training.validity.orders import Estimator


def shapley_agreement(values_SN: Floats, attribution_Nn: Floats, estimator: Estimator) -> ShapleyAgreement:
    """How far attributions (N, n) are the game's Shapley values."""
    shapley_Nn = shapley_values(values_SN)
    correlations_N = row_spearman(attribution_Nn, shapley_Nn)
    correlations_N = correlations_N[np.isfinite(correlations_N)]
    same_top_N = attribution_Nn.argmax(axis=1) == shapley_Nn.argmax(axis=1)
    same_sign_N = (np.sign(attribution_Nn) == np.sign(shapley_Nn)).mean(axis=1)
    return ShapleyAgreement(
        spearman=estimator(correlations_N[:, None], first),
        pearson=estimator(products(attribution_Nn, shapley_Nn), pearson),
        top=_mean(same_top_N.astype(np.float64), estimator),
        sign=_mean(same_sign_N, estimator),
    )


def interaction_figures(
    values_SN: Floats, synergy_N: Floats, redundancy_N: Floats, modalities: Sequence[str], estimator: Estimator
) -> InteractionFigures:
    """How far the interaction experts' contributions follow the game's interactions."""
    found_N = interactions(values_SN)
    expected_N = synergy_N - (len(modalities) - 1) * redundancy_N
    return InteractionFigures(
        share=interaction_share(values_SN),
        mean=float(found_N.mean()),
        synergy=_rank_correlation(synergy_N, found_N, estimator),
        redundancy=_rank_correlation(redundancy_N, -found_N, estimator),
        expected=_rank_correlation(expected_N, found_N, estimator),
        pairs=tuple(
            PairInteraction(
                modalities=(modalities[i], modalities[j]), mean=float(index_N.mean()), mean_absolute=float(np.abs(index_N).mean())
            )
            for (i, j), index_N in pairs(values_SN)
        ),
    )


def _rank_correlation(x_N: Floats, y_N: Floats, estimator: Estimator) -> Estimate | None:
    """Over rows; a resample keeps the ranks that its rows have among all."""
    return estimator(products(ranks(x_N)[:, None], ranks(y_N)[:, None]), pearson)


def _mean(values_N: Floats, estimator: Estimator) -> Estimate:
    found = estimator(values_N[:, None], first)
    assert found is not None, "a mean of at least one row is always defined"
    return found
