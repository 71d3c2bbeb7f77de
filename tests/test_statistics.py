import numpy as np
import pandas as pd
import pytest

from cam_utils.statistics import holm, mean_interval, signed_rank


def test_holm_by_hand():
    p = pd.Series([0.04, 0.01, 0.03, 0.005], list("abcd"))
    np.testing.assert_allclose(holm(p), [0.06, 0.03, 0.06, 0.02])  # d·4, b·3, c·2, a·1 not below c
    assert list(holm(pd.Series([0.5, 0.9]))) == [1, 1]


def test_signed_rank_by_hand():
    effect, p = signed_rank([1, 2, 3, 4, 5])
    assert effect == 1 and p == 2 ** (1 - 5)
    effect, p = signed_rank([-1, 2, 3, 0, 0])  # ranks 1 lost, 2 and 3 won
    assert effect == pytest.approx(4 / 6) and p == pytest.approx(2 * 2 / 8)  # W- <= 1: {}, {1} of 8 sign patterns
    assert signed_rank([0, 0]) == (0, 1)
    effect, p = signed_rank([1, 1, -1, -1])  # ties
    assert effect == 0 and p == pytest.approx(1)
    assert signed_rank([1, 1, *range(2, 12)]) == (1, pytest.approx(2**-11))  # ties, and all won: still exact


def test_intervals_cover():
    draws, inside = np.random.default_rng(0), []
    for _ in range(200):
        mean, low, high = mean_interval(draws.exponential(size=40), draws)
        assert low <= mean <= high
        inside.append(low <= 1 <= high)
    assert 0.85 < np.mean(inside) < 0.98
    assert mean_interval([0.3, 0.3, 0.3], draws) == pytest.approx((0.3, 0.3, 0.3))
    with pytest.raises(ValueError, match="two finite"):
        mean_interval([1.0], draws)
