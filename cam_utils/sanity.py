"""Is the method sane? Metrics that call it again: `f(model, layer, x, target, method) -> (N,) float64`.

method(model, layer, x, target) -> (N,h,w) signed maps, such as a value of METHODS or a `functools.partial` of one; layer is a
module or dotted name (None for methods that have none); x (N,3,H,W) preprocessed; target (N,) class ids. The model is left
as it was.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .cams import Layer
from .checks import check_count, check_finite, check_input, check_positive, seeded
from .layers import layer_name, resolve_layer
from .models import spec_of
from .perturb import BATCH_SIZE, channels, mask_image
from .postprocess import heatmap

Method = Callable[[nn.Module, Layer | None, Tensor, Tensor], Tensor]


def coherency(model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor, method: Method) -> Tensor:
    """(ρ + 1) / 2, ρ Pearson's correlation of the heat map of x with that of x masked by it (Poppi et al. 2021). (N,) in [0,1].

    Higher is better; 1/2 is no correlation, and also what a constant map gets. Both maps are heat maps (rectified, upsampled,
    min-max), the image is masked in pixel space. Traps: a map that ignores the image is perfectly coherent; masking with a
    nearly full map changes little, so that large maps gain. Cost: 2 runs of the method.
    """
    target, size = check_input(x, target), tuple(x.shape[2:])
    heat = heatmap(_maps(method, model, layer, x, target), size).to(x)
    again = heatmap(_maps(method, model, layer, mask_image(model, x, heat), target), size).to(x)
    return (pearson(heat, again) + 1) / 2


def sensitivity_max(
    model: nn.Module,
    layer: Layer | None,
    x: Tensor,
    target: Tensor,
    method: Method,
    *,
    radius: float = 0.02,
    n_perturbations: int = 10,
    generator: torch.Generator | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Tensor:
    """max over y of ‖Φ(y) - Φ(x)‖₂ / ‖Φ(x)‖₂, y uniform within ‖y - x‖∞ <= radius (Yeh et al. 2019). (N,) >= 0.

    Lower is better. Φ is the signed map at its own resolution; the division is Captum's. radius is in pixel values of
    [0,1], 0.02 being five of 255 grey levels; n_perturbations is the number of y, which are not clipped to [0,1].
    generator: of the y (None: seed 0 for every image). A map of zeros has 0 if it stays zero, else infinity.
    Traps: the maximum of a few random draws is far below the true one and grows with their number; a map that ignores the
    image gets 0, so stability alone proves nothing.
    Cost: n_perturbations + 1 runs of the method.
    """
    target = check_input(x, target)
    check_count("n_perturbations", n_perturbations)
    check_count("batch_size", batch_size)
    check_positive(radius=radius)
    scale, worst = radius / channels(spec_of(model).std, x), []
    disable = None if progress is None else not progress

    def run(x: Tensor, target: Tensor) -> Tensor:
        return _maps(method, model, layer, x, target).double().flatten(1)

    bar = tqdm(x, "sensitivity", leave=False, disable=disable)
    for image, c, own in zip(bar, target, run(x, target), strict=True):
        draws = seeded(generator)
        noise = torch.rand(n_perturbations, *image.shape, generator=draws, device=draws.device, dtype=torch.float64)
        parts = (scale * (2 * noise - 1).to(x)).split(batch_size)
        changes = [(run(image + part, c.expand(len(part))) - own).norm(dim=1) for part in parts]
        change = torch.cat(changes).max()
        worst.append(torch.where(change > 0, change / own.norm(), 0))
    return torch.stack(worst)


def cascading_randomisation(
    model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor, method: Method, **options
) -> Tensor:
    """Mean over the stages of |Spearman's rank correlation| with the trained network's map (Adebayo et al. 2018). (N,) in [0,1].

    Lower is better: a map that survives random weights does not explain the network. The absolute value, since a reversed
    map is the same picture. Traps: unrelated maps of n positions do not have 0 but about 0.8/√(n-1) (0.115 at 7×7), smooth
    ones more; what a ReLU network makes of the image survives in part, so a low value is necessary, not sufficient.
    options and cost: `randomisation_correlations`, whose values per stage say more than their mean.
    """
    return randomisation_correlations(model, layer, x, target, method, **options).abs().mean(1)


def randomisation_correlations(
    model: nn.Module,
    layer: Layer | None,
    x: Tensor,
    target: Tensor,
    method: Method,
    *,
    stages: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Spearman's rank correlation of the signed maps before and after each stage of cascading randomisation. (N,stages).

    The stages (dotted names; None: `stages_of`) are initialised anew one after the other, from the output to the
    input, in a copy of the model; column k has the first k + 1 of them random. Every module draws as at its construction
    (`reset_parameters`; batch norm forgets its statistics), parameters of other modules are shuffled. generator: of the
    draws, the same for all images (None: seed 0). A map that has become constant has correlation 0. ValueError without stages.
    Cost: stages + 1 runs of the method, and a copy of the model in memory.
    """
    target = check_input(x, target)
    stages = stages_of(model) if stages is None else [stages] if isinstance(stages, str) else list(stages)
    if not stages:
        raise ValueError(
            "there is nothing to randomise: name some stages, or use a model whose children have parameters"
        )
    if layer is not None:
        layer = layer_name(model, layer)
    correlations, disable, draws = [], None if progress is None else not progress, seeded(generator)
    with torch.inference_mode(False), torch.no_grad():
        trained = _maps(method, model, layer, x, target)
        random = copy.deepcopy(model)
        for name in tqdm(stages, "randomisation", leave=False, disable=disable):
            _initialise(resolve_layer(random, name), draws)
            correlations.append(spearman(trained, _maps(method, random, layer, x, target)))
    return torch.stack(correlations, 1)


def stages_of(model: nn.Module) -> list[str]:
    """The model's children with parameters, `nn.Sequential`s opened once, last first: "classifier", …, "conv_stem"."""
    names = []
    for name, child in model.named_children():
        parts = [f"{name}.{part}" for part, _ in child.named_children()] if isinstance(child, nn.Sequential) else [name]
        names += [part for part in parts if any(True for _ in model.get_submodule(part).parameters())]
    return names[::-1]


def _initialise(stage: nn.Module, generator: torch.Generator) -> None:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
        for module in stage.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                for parameter in module.parameters(recurse=False):
                    order = torch.randperm(parameter.numel()).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each a[i] with b[i], (N,...) -> (N,) float64; 0 where one of them is constant."""
    a, b = _alike(a, b)
    varies = (a.amax(1) > a.amin(1)) & (b.amax(1) > b.amin(1))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).where(varies, 0).clamp(-1, 1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation, Pearson's of the ranks (ties share their mean rank), as `pearson`."""
    a, b = _alike(a, b)
    return pearson(_mean_ranks(a), _mean_ranks(b))


def _maps(method: Method, model: nn.Module, layer: Layer | None, x: Tensor, target: Tensor) -> Tensor:
    """What the method gives, if that is one finite map for each image."""
    if not callable(method):
        raise TypeError(f"method must be a function such as METHODS['grad_cam'], not {method!r}")
    maps = method(model, layer, x, target)
    if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != len(x):
        found = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(
            f"the method must return maps ({len(x)},h,w), one for each image and nothing else, not {found}"
        )
    return check_finite(maps, "the method's map")


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N,n) float64."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a.ndim < 2 or not a.numel():
        found = (tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (a, b))
        raise ValueError("only tensors (N,...) of the same shape can be correlated, not {} and {}".format(*found))
    return tuple(check_finite(t, "a map that is correlated").double().flatten(1) for t in (a, b))


def _mean_ranks(a: Tensor) -> Tensor:
    ranks = []
    for row in a.flatten(1):
        _, group, sizes = torch.unique(row, return_inverse=True, return_counts=True)
        ranks.append((sizes.cumsum(0) - (sizes - 1) / 2)[group])
    return torch.stack(ranks)
