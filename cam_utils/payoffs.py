"""What a coalition is worth, from the network's logits, and a warning where floating point numbers do not hold it."""

import warnings

import torch
from torch import Tensor

from .checks import single

_ROUNDINGS = 16  # from 1: differences of probabilities that are closer have hardly a digit left
# below, probabilities and distances from 1 vary by powers of ten: their mean hangs on a few coalitions
_VANISHING = 1e-12


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
    """Whether all of them are 1, up to a few roundings or 1e-12, or all of them vanish."""
    return bool((probabilities >= 1 - _gap(probabilities)).all() or (probabilities < _VANISHING).all())


def warn_of_saturation(probabilities: Tensor, target: int) -> None:
    """Warn that the probability of the class `target` is next to 1, or to 0, whatever is hidden."""
    where = f"within {_gap(probabilities):.0e} of 1" if probabilities[0] > 0.5 else f"below {_VANISHING:.0e}"
    warnings.warn(
        f"the probability of class {target} is {where}, whatever is hidden: its differences hang on rounding or on a few "
        'coalitions, and so does the map. Take payoff="log_odds".',
        SaturationWarning,
        stacklevel=2,
    )


def _gap(probabilities: Tensor) -> float:
    return max(_ROUNDINGS * torch.finfo(probabilities.dtype).eps, _VANISHING)
