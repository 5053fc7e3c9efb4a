"""of the pairs with the best returns alone, returns by their standard deviation: ARS (Mania et al. 2018)."""

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.shapings import standardize


def shape(returns: NDArray[np.float64], top_share: float = 1.0) -> NDArray[np.float64]:
    """See `shapings`. The share `top_share` of the pairs counts, those whose better return is best; the others have 0.

    With plain gradient steps (``--optimizer sgd --momentum 0 --l2 0 --iw-updates 0``) an update is that of ARS V1-t,
    or of V2-t with statistics from all episodes (``--obs-stat-probability 1``):

        theta += alpha / (b·sigma_R) · Σ (F₊ − F₋)·epsilon    over the b best of N pairs

    where sigma_R is the deviation of their 2b returns. ARS's step size alpha is half of the learning rate here, its
    nu is `sigma`, N is `n_pairs` and b/N is `top_share`: ``learning_rate = 2·alpha``, whatever b. To that end utilities
    are multiplied by N/b, and the gradient is the mean over all 2N episodes. That the mean of the 2b returns is
    subtracted as well changes nothing there; with importance weights, whose sums over a pair's two members do not
    cancel, it takes out what all returns have in common.

    ARS itself starts from theta = 0 without biases, and neither clips observations nor adds noise to actions.
    """
    n = len(returns)
    b = max(1, int(top_share * n + 0.5))
    best = np.argsort(-returns.max(axis=1), kind="stable")[:b]
    utilities = np.zeros_like(returns)
    utilities[best] = (n / b) * standardize.shape(returns[best])
    return utilities
