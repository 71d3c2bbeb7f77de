"""Every metric by its name, with what it needs, its range, its direction and its source; the metrics of numbers are defined here.

One rectification serves all: heat = postprocess.heatmap(maps, x.shape[2:]) (ReLU, bilinear upsampling, min-max). Metrics of
signed maps say so. Every metric returns one float64 per image, (N,); definitions, costs and traps are in the docstrings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from .baselines import BASELINES, all_ones, centre_gaussian, random_map, sobel_edges
from .faithfulness import (
    average_drop,
    average_drop_in_deletion,
    average_gain,
    deletion,
    increase,
    insertion,
    masked_scores,
    perturbation_curve,
)
from .localisation import energy_pointing_game, grid_pointing_game, pointing_game
from .perturb import check_heat, mask_image
from .road import road_combined, road_lerf, road_morf
from .sanity import (
    cascading_randomisation,
    coherency,
    pearson,
    randomisation_correlations,
    sensitivity_max,
    spearman,
    stages_of,
)

__all__ = [
    "BASELINES",
    "METRICS",
    "Metric",
    "adcc",
    "all_ones",
    "average_drop",
    "average_drop_in_deletion",
    "average_gain",
    "cascading_randomisation",
    "centre_gaussian",
    "coherency",
    "complexity",
    "deletion",
    "efficiency_gap",
    "energy_pointing_game",
    "grid_pointing_game",
    "increase",
    "insertion",
    "mask_image",
    "masked_scores",
    "pearson",
    "perturbation_curve",
    "pointing_game",
    "random_map",
    "randomisation_correlations",
    "road_combined",
    "road_lerf",
    "road_morf",
    "sensitivity_max",
    "shapley_error",
    "sobel_edges",
    "spearman",
    "stages_of",
]


@dataclass(frozen=True)
class Metric:
    """A metric and what is known of it.

    needs, the arguments of `function`: "faithfulness" (model, x, target, heat) · "map" (heat) · "method" (model, layer, x,
    target, method) · "region" (heat, region) · "cells" (maps, cells, index) · "shapley" (values, truth) · "metrics", the
    values (N,) of the metrics in `of`, under these names.
    """

    function: Callable[..., Tensor]
    needs: str
    range: tuple[float, float]
    better: str  # "higher" or "lower"
    source: str
    of: tuple[str, ...] = ()


def complexity(heat: Tensor) -> Tensor:
    """Mean of |heat| (Poppi et al. 2021). (N,) in [0,1]; lower is better. Trap: an empty map is perfect."""
    return check_heat(heat).double().mean((1, 2))


def adcc(average_drop: Tensor, coherency: Tensor, complexity: Tensor) -> Tensor:
    """Harmonic mean of coherency, 1 - complexity and 1 - AD (Poppi et al. 2021). (N,) in [0,1]; higher is better.

    0 as soon as one of the three is 0. Trap: the mean over images of this is not this of the three means; the result tables of
    pytorch-shapley-cam (METHOD.md) are the latter: give it the means to compare. Inherits the traps of the three.
    """
    given = [torch.as_tensor(values).double() for values in (coherency, complexity, average_drop)]
    fit = len({t.shape for t in given if t.ndim}) < 2  # a single number serves for all images
    if not fit or not all(bool(((t >= 0) & (t <= 1)).all()) for t in given):
        shapes = ", ".join(str(tuple(t.shape)) for t in given)
        raise ValueError(f"coherency, complexity and average_drop must lie in [0,1] and have one shape, not {shapes}")
    terms = torch.stack(torch.broadcast_tensors(given[0], 1 - given[1], 1 - given[2]))
    return 3 / (1 / terms).sum(0)


def shapley_error(values: Tensor, truth: Tensor) -> Tensor:
    """‖φ̂ - φ‖₂ / ‖φ‖₂ of signed values against converged Shapley values, both (N,...), in the payoff's unit. (N,) >= 0.

    Lower is better; a map of zeros has 1. Infinite where φ is zero and φ̂ is not. Trap: a map that is right but for its scale
    is punished: Grad-CAM and its kin promise no scale, so give their `pearson` or `spearman` correlation beside it.
    """
    values, truth = _same(values, truth)
    error = (values - truth).norm(dim=1)
    return torch.where(error > 0, error / truth.norm(dim=1), 0)


def efficiency_gap(values: Tensor, truth: Tensor) -> Tensor:
    """|Σ φ̂ - Σ φ|, both (N,...), in the payoff's unit: how far the values miss v(all) - v(none). (N,) >= 0.

    Shapley 1953's axiom of efficiency. Lower is better. Trap: necessary, not sufficient, since any map can be shifted to gap
    0; and a map whose method promises no scale has no gap to speak of.
    """
    values, truth = _same(values, truth)
    return (values.sum(1) - truth.sum(1)).abs()


def _same(values: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if not (isinstance(values, Tensor) and isinstance(truth, Tensor)) or values.is_complex() or truth.is_complex():
        raise ValueError(f"values and truth must be real tensors, not {type(values).__name__}, {type(truth).__name__}")
    if values.shape != truth.shape or values.ndim < 2 or not (values.isfinite().all() and truth.isfinite().all()):
        raise ValueError(
            f"values and truth must be finite, (N,...) alike, not {tuple(values.shape)}, {tuple(truth.shape)}"
        )
    return values.double().flatten(1), truth.to(values.device).double().flatten(1)


_UNIT, _POSITIVE = (0.0, 1.0), (0.0, inf)

METRICS: dict[str, Metric] = {
    "average_drop": Metric(average_drop, "faithfulness", _UNIT, "lower", "Chattopadhay et al. 2018"),
    "increase": Metric(increase, "faithfulness", _UNIT, "higher", "Chattopadhay et al. 2018"),
    "average_gain": Metric(average_gain, "faithfulness", _UNIT, "higher", "Zhang et al. 2024"),
    "average_drop_in_deletion": Metric(average_drop_in_deletion, "faithfulness", _UNIT, "higher", "Jung & Oh 2021"),
    "coherency": Metric(coherency, "method", _UNIT, "higher", "Poppi et al. 2021"),
    "complexity": Metric(complexity, "map", _UNIT, "lower", "Poppi et al. 2021"),
    "adcc": Metric(
        adcc, "metrics", _UNIT, "higher", "Poppi et al. 2021", of=("average_drop", "coherency", "complexity")
    ),
    "insertion": Metric(insertion, "faithfulness", _UNIT, "higher", "Petsiuk et al. 2018"),
    "deletion": Metric(deletion, "faithfulness", _UNIT, "lower", "Petsiuk et al. 2018"),
    "road_morf": Metric(road_morf, "faithfulness", _UNIT, "lower", "Rong et al. 2022"),
    "road_lerf": Metric(road_lerf, "faithfulness", _UNIT, "higher", "Rong et al. 2022"),
    "road_combined": Metric(
        road_combined, "metrics", (-0.5, 0.5), "higher", "Rong et al. 2022", of=("road_morf", "road_lerf")
    ),
    "energy_pointing_game": Metric(energy_pointing_game, "region", _UNIT, "higher", "Wang et al. 2020"),
    "pointing_game": Metric(pointing_game, "region", _UNIT, "higher", "Zhang et al. 2018"),
    "grid_pointing_game": Metric(grid_pointing_game, "cells", _UNIT, "higher", "Böhle et al. 2021"),
    "cascading_randomisation": Metric(cascading_randomisation, "method", _UNIT, "lower", "Adebayo et al. 2018"),
    "sensitivity_max": Metric(sensitivity_max, "method", _POSITIVE, "lower", "Yeh et al. 2019"),
    "shapley_error": Metric(shapley_error, "shapley", _POSITIVE, "lower", "this project"),
    "efficiency_gap": Metric(efficiency_gap, "shapley", _POSITIVE, "lower", "Shapley 1953"),
}
