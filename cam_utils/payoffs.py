"""What a coalition is worth, from the network's logits, and a warning where floating point numbers do not hold it."""

import warnings

import torch
from torch import Tensor

from .checks import single

_ROUNDINGS = 16  # from 1: differences of probabilities that are closer have hardly a digit left
_VANISHING = 1e-12  # probabilities below vary by powers of ten: their mean hangs on a few coalitions


class SaturationWarning(UserWarning):
    """A probability that is next to 1 or 0 whatever is hidden: differences of it make no map."""


def _log_odds(logits: Tensor, target: int) -> Tensor:
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.logsumexp(1)


PAYOFFS = {
    "probability": lambda logits, target: logits.softmax(1)[:, target],
    "logit": lambda logits, target: logits[:, target],
    "log_odds": _log_odds,
}


def payoff_of(logits: Tensor, target: int, payoff: str) -> Tensor:
    """The payoff (M,) of logits (M,K), in float32 at least. Raises ValueError where there is no other class to compare with."""
    if payoff != "logit" and logits.shape[1] == 1:
        raise ValueError(
            f'the model has a single output, to which the payoff "{payoff}" has nothing to compare: let it return the two '
            'logits (0, output) of no and yes, or take payoff="logit"'
        )
    return PAYOFFS[payoff](single(logits), target)


def is_saturated(probabilities: Tensor) -> bool:
    """Whether all of them are 1 up to a few roundings, or all of them vanish."""
    nearly_one = 1 - _ROUNDINGS * torch.finfo(probabilities.dtype).eps
    return bool((probabilities > nearly_one).all() or (probabilities < _VANISHING).all())


def warn_of_saturation(probabilities: Tensor, target: int) -> None:
    """Warn that the probability of the class `target` is next to 1, or to 0, whatever is hidden."""
    if probabilities[0] > 0.5:
        what = "is 1 up to rounding, whatever is hidden: its differences are noise, and so is the map"
    else:
        what = (
            f"is below {_VANISHING:.0e}, whatever is hidden: its differences hang on a few coalitions, as does the map"
        )
    warnings.warn(f'the probability of class {target} {what}. Take payoff="log_odds".', SaturationWarning, stacklevel=2)
