"""How sure can one be? Intervals over images, paired tests, and the correction for having made many."""

import numpy as np
import pandas as pd
from scipy import stats


def mean_interval(values, generator: np.random.Generator, *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of values (n,) and its bootstrap interval (Efron 1979; percentiles of 2000 draws of n images with replacement)."""
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least two finite values in a row, not {values.shape}")
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator must be a numpy Generator, such as np.random.default_rng(0), not {generator!r}")
    options = {"n_resamples": 2000, "confidence_level": level, "method": "percentile", "rng": generator}
    low, high = stats.bootstrap((values,), np.mean, **options).confidence_interval
    return float(values.mean()), float(low), float(high)


def signed_rank(differences) -> tuple[float, float]:
    """Matched-pairs rank-biserial correlation (Kerby 2014) and two-sided p of Wilcoxon's signed-rank test (1945).

    differences (n,): paired, positive where the one is better; those that are 0 are left out. The correlation is
    (W+ - W-) / (W+ + W-), from -1 to 1. The p is exact without ties or
    for n <= 13, and at least 2^(1-n), n counting those that differ. (0, 1) where nothing differs.
    """
    d = np.asarray(differences, float)
    if d.ndim != 1 or np.isnan(d).any():
        raise ValueError(
            f"differences must be numbers in a row (n,), not {d.shape}, without NaN: leave those pairs out"
        )
    d = d[d != 0]
    if not len(d):
        return 0.0, 1.0
    ranks = stats.rankdata(abs(d))
    if len(np.unique(abs(d))) == len(d):
        method = "exact"
    else:  # ties: all 2^n signs where they can be gone through
        method = stats.PermutationMethod(n_resamples=np.inf) if len(d) <= 13 else "approx"
    p = stats.wilcoxon(d, method=method).pvalue
    return float((ranks[d > 0].sum() - ranks[d < 0].sum()) / ranks.sum()), float(p)


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number by Holm's step-down method (1979), in the order given."""
    if not isinstance(p, pd.Series) or not p.between(0, 1).all():
        raise ValueError(f"p-values must be a pandas Series in [0,1], without NaN, not {type(p).__name__}")
    ordered = p.sort_values()
    return (ordered * np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)
