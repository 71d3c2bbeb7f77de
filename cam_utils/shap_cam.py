"""Shapley values of a layer's positions as CAM methods: games (`games.LayerGame`) times estimators (`shapley`, `owen`)."""

from functools import partial

import torch
from torch import Tensor, nn

from .additive import additive_values, within_reach
from .checks import check_count, check_input, seeded
from .games import LayerGame
from .owen import DEFAULT_BUDGET, owen
from .shapley import Estimate, check_budget, per_position


def shap_cam(
    model: nn.Module,
    layer: nn.Module | str,
    x: Tensor,
    target: Tensor,
    *,
    samples_per_position: int = 200,
    payoff: str = "probability",
    baseline: str | Tensor = "mean",
    generator: torch.Generator | None = None,
    progress: bool | None = None,
    return_estimate: bool = False,
) -> Tensor | tuple[Tensor, list[Estimate]]:
    """Shap-CAM (Zheng et al. 2022): Shapley values of the positions, m sampled coalitions for every one of them.

    The paper's code is not public; the definition is as a published re-implementation report states it, and m = 200 is our
    choice. Cost: 1 forward to the layer and 2·m·h·w + 2 evaluations of the head per image: 19,602 at 7×7. generator: of the
    coalitions (None: seed 0 for every image). return_estimate: also the `Estimate` of each image, with standard errors.
    """
    check_count("samples_per_position", samples_per_position)

    def estimate(game: LayerGame, generator: torch.Generator) -> Estimate:
        budget = 2 * samples_per_position * game.n_players + 2
        return per_position(game, budget, generator, progress=progress)

    new_game = partial(LayerGame, model, layer, payoff=payoff, baseline=baseline)
    return _maps(new_game, estimate, x, target, generator, return_estimate)


def owen_cam(
    model: nn.Module,
    layer: nn.Module | str,
    x: Tensor,
    target: Tensor,
    *,
    budget: float = DEFAULT_BUDGET,
    payoff: str = "probability",
    baseline: str | Tensor = "mean",
    generator: torch.Generator | None = None,
    return_estimate: bool = False,
) -> Tensor | tuple[Tensor, list[Estimate]]:
    """Owen-CAM: Shap-CAM's Shapley values of the positions from gradients along Owen's diagonal, see `owen`.

    budget: head evaluations per image, a forward+backward counting 2.5. The default, 22, is deterministic and costs about
    what Grad-CAM costs; larger budgets correct its bias and give standard errors (return_estimate: also the `Estimate`
    of each image). Where the head is average pooling and one linear layer, and its numbers are `within_reach`, no budget
    is spent. Cost: 1 forward to the layer, and the budget.
    """

    def estimate(game: LayerGame, draws: torch.Generator) -> Estimate:
        return additive_values(game) if within_reach(game) else owen(game, budget, draws)

    check_budget(budget)
    new_game = partial(LayerGame, model, layer, payoff=payoff, baseline=baseline, deferred=True)
    return _maps(new_game, estimate, x, target, generator, return_estimate)


def _maps(new_game, estimate, x, target, generator, return_estimate):
    target = check_input(x, target)
    maps, estimates = [], []
    for image, c in zip(x, target, strict=True):
        game = new_game(image[None], c)
        estimates.append(estimate(game, seeded(generator)))  # a batch is a loop
        maps.append(estimates[-1].values.to(game.device, game.dtype).view(game.shape))
    return (torch.stack(maps), estimates) if return_estimate else torch.stack(maps)
