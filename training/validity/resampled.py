"""The dataset-level explanation under resampling: would other rows of the same kind have told another story?"""

from collections.abc import Sequence

import numpy as np

from service.bundle.manifest import ExpertInfo
from service.bundle.validity import Estimate, ExpertShare, ResampledFigures
from training.validity.config import ValidityConfig
from training.validity.estimates import Floats, resampled_means


def resampled_figures(share_NE: Floats, experts: Sequence[ExpertInfo], config: ValidityConfig) -> ResampledFigures | None:
    """Intervals of the mean contribution shares (N, E), and how often their order stays; None without resamples."""
    if config.num_bootstraps == 0:
        return None
    shares = share_NE.astype(np.float64)
    mean_E = shares.mean(axis=0)
    drawn_RE = np.concatenate(list(resampled_means(shares, config.num_bootstraps, config.seed)))
    low_E, high_E = np.quantile(drawn_RE, [0.025, 0.975], axis=0)
    order_E, orders_RE = np.argsort(-mean_E, kind="stable"), np.argsort(-drawn_RE, axis=1, kind="stable")
    return ResampledFigures(
        num_bootstraps=config.num_bootstraps,
        experts=tuple(
            ExpertShare(name=expert.name, share=Estimate(value=float(mean), low=float(low), high=float(high)))
            for expert, mean, low, high in zip(experts, mean_E, low_E, high_E, strict=True)
        ),
        first=experts[order_E[0]].name,
        first_stays=float((orders_RE[:, 0] == order_E[0]).mean()),
        order_stays=float((orders_RE == order_E).all(axis=1).mean()),
    )
