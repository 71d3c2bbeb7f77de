"""What an estimate of Shap-CAM's Shapley values costs and how far it is off: `python -m cam_utils benchmark shapley`.

Every estimator plays the same games (photo × layer), the public packages through their own code, and is compared with a
converged reference. Costs are in evaluations of the head, a gradient counting `layers.GRADIENT_COST`. Results are
tidy tables, one row per photo, layer, estimator and budget; the packages play on the first few photos only.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import cams, shap_cam
from .data import Photo, load_photos, make_shapes
from .files import make_ready, write_file
from .games import LayerGame
from .layers import resolve_layer, split
from .models import preprocess
from .owen import owen, owen_and_surrogate
from .packages import grad_cam_package
from .shapley import BudgetError, Estimate, kernel_shap, per_position, permutation
from .training import shapes_classifier

BUDGETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
PEER_BUDGETS = (512, 2048)
MAPS = ("GradCAM", "HiResCAM", "LayerCAM", "ShapleyCAM", "ScoreCAM", "AblationCAM")


def _shapiq(approximator: str, **options) -> Callable:
    def estimate(game: LayerGame, budget: int, generator: torch.Generator) -> Estimate:
        import shapiq

        n, seed = game.n_players, int(torch.randint(2**31, (), generator=generator))
        extra = {key: value(n) if callable(value) else value for key, value in options.items()}
        method = getattr(shapiq, approximator)(n=n, random_state=seed, **extra)
        before = game.n_evaluations

        def play(masks: np.ndarray) -> np.ndarray:  # (M,n), or (n,) for a single coalition
            return game.value(torch.from_numpy(masks.reshape(-1, n))).double().cpu().numpy()

        found = method.approximate(budget, play)
        values = torch.tensor([found[(i,)] for i in range(n)], dtype=torch.float64)
        return _estimate(values, game.n_evaluations - before)

    return estimate


def _captum(method: str) -> Callable:
    def estimate(game: LayerGame, budget: int, generator: torch.Generator) -> Estimate:
        import captum.attr

        n, seed = game.n_players, int(torch.randint(2**31, (), generator=generator))
        samples = max(1, budget // n) if method == "ShapleyValueSampling" else budget
        before = game.n_evaluations
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  Captum's KernelShap draws from numpy's global generator
            attribution = getattr(captum.attr, method)(game.value)
            values = attribution.attribute(
                torch.ones(1, n), torch.zeros(1, n), n_samples=samples, perturbations_per_eval=64
            )
        return _estimate(values[0].double(), game.n_evaluations - before)

    return estimate


def _estimate(values: Tensor, spent: float) -> Estimate:
    return Estimate(values, torch.full_like(values, torch.nan), spent, float("nan"))


ESTIMATORS: dict[str, Callable] = {
    "Owen-CAM": owen,
    "leverage KernelSHAP": kernel_shap,
}
PEERS: dict[str, Callable] = {
    "permutations": permutation,
    "Shap-CAM, per position": per_position,
    "shapiq KernelSHAP, paired": _shapiq("KernelSHAP", pairing_trick=True, sampling_weights=lambda n: np.ones(n + 1)),
    "shapiq PermutationSamplingSV": _shapiq("PermutationSamplingSV"),
    "shapiq SVARM": _shapiq("SVARM"),
    "shapiq OwenSamplingSV": _shapiq("OwenSamplingSV"),
    "Captum ShapleyValueSampling": _captum("ShapleyValueSampling"),
    "Captum KernelShap": _captum("KernelShap"),
}


class _Residual:
    """What a surrogate leaves of a game."""

    def __init__(self, game: LayerGame, surrogate):
        self.n_players, self._game, self._surrogate = game.n_players, game, surrogate

    def value(self, masks: Tensor) -> Tensor:
        return self._game.value(masks).double().cpu() - self._surrogate.value(masks)


def reference(game: LayerGame, tolerance: float, generator: torch.Generator, *, limit: int = 200_000) -> Estimate:
    """Converged Shapley values, whatever the surrogate, until their own relative error is below `tolerance`.

    The values of a surrogate, fitted once to evaluations of its own, are computed without the network; those of the rest,
    game - surrogate, by KernelSHAP on fresh paired coalitions, in independent runs whose mean is taken and whose standard
    errors, those of the mean, are stated. At most about `limit` evaluations.
    """
    estimate, surrogate = owen_and_surrogate(game, 2048, generator)
    spent, base = estimate.n_evaluations, surrogate.shapley(2**15)[0]
    residual, parts = _Residual(game, surrogate), []
    while True:
        parts.append(kernel_shap(residual, 40 * game.n_players, generator))
        values = base + torch.stack([part.values for part in parts]).mean(0)
        error = torch.stack([part.standard_error for part in parts]).square().mean(0).sqrt() / len(parts) ** 0.5
        spent += parts[-1].n_evaluations
        if spent >= limit or error.norm() <= tolerance * values.norm():
            ends = game.value(torch.tensor([[0.0], [1.0]]).expand(2, game.n_players)).double().cpu()
            return Estimate(values, error, spent, float(values.sum() - ends[1] + ends[0]))


def cached_reference(game: LayerGame, key: dict, tolerance: float, seed: int, folder: Path) -> tuple[Tensor, float]:
    """Reference values (n,) and their own relative error, computed once for each key (weights, photo, layer, payoff)."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{digest}.npz"
    n = game.n_players
    try:
        with np.load(file, allow_pickle=False) as saved:
            values, error = saved["values"], float(saved["error"])
            whole = values.dtype.kind == "f" and values.shape == (n,) and np.isfinite([*values, error]).all()
            good = error <= tolerance or saved.get("tolerance", 0) == tolerance
            if whole and good and json.loads(str(saved["key"])) == key:
                return torch.from_numpy(values), error
    except PermissionError:
        raise
    except Exception:  # missing, cut off, or something else altogether: it is computed again
        pass
    found = reference(game, tolerance, torch.Generator().manual_seed(seed))
    error = float(found.standard_error.norm() / found.values.norm())
    about = {"error": error, "tolerance": tolerance, "key": json.dumps(key, sort_keys=True)}
    np.savez(buffer := io.BytesIO(), allow_pickle=False, values=found.values.numpy(), **about)
    write_file(file, buffer.getvalue())
    return found.values, error


def fingerprint(model: nn.Module) -> str:
    """Of a model's parameters and buffers: the start of their sha256."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def compare(
    game: LayerGame, truth: Tensor, truth_error: float, estimators: dict, budgets: Iterable[int], seed: int
) -> list[dict]:
    """One row per estimator and budget that it can work with: cost, relative error, correlation, coverage, seconds.

    coverage: the share of positions whose 95 % interval holds the truth; its width counts the error of the truth, too,
    `truth_error` relative to its norm and spread evenly over the positions.
    """
    rows = []
    for name, estimator in estimators.items():
        for budget in budgets:
            generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
            try:
                estimate = estimator(game, budget, generator)
            except BudgetError:  # too small for this estimator
                continue
            seconds, difference = time.perf_counter() - start, estimate.values - truth
            deviation = (estimate.standard_error.square() + (truth_error * truth.norm()) ** 2 / len(truth)).sqrt()
            rows.append(
                {
                    "estimator": name,
                    "budget": budget,
                    "cost": estimate.n_evaluations,
                    "error": float(difference.norm() / truth.norm()),
                    "correlation": float(torch.corrcoef(torch.stack([estimate.values, truth]))[0, 1]),
                    "coverage": float((difference.abs() <= 1.96 * deviation).double().mean())
                    if deviation.isfinite().all()
                    else float("nan"),
                    "seconds": seconds,
                }
            )
    return rows


def compare_maps(model: nn.Module, layer: str, x: Tensor, target: int, truth: Tensor) -> list[dict]:
    """One row per method of the package grad-cam: the correlation of its map, before its ReLU, with the Shapley values.

    Such a map has another unit, so that there is no error; its cost is in seconds alone.
    """
    rows = []
    for name in MAPS:
        start = time.perf_counter()
        map = grad_cam_package(name, model, layer, x, target).double().flatten()
        seconds = time.perf_counter() - start
        correlation = float(torch.corrcoef(torch.stack([map, truth]))[0, 1])
        rows.append({"method": f"grad-cam's {name}", "correlation": correlation, "seconds": seconds})
    return rows


REFERENCE_TOLERANCE = {"blocks.4": 0.08, "blocks.5": 0.02}  # relative; 0.008 where a coalition costs less


def games(model: nn.Module, images: dict, layers: Iterable[str]) -> Iterable[tuple[str, str, LayerGame]]:
    """(name, layer, game of the top class) for every image {name: x (1,3,H,W)} and layer."""
    for name, x in images.items():
        with torch.no_grad():
            target = model(x).argmax(1)
        for layer in layers:
            yield name, layer, LayerGame(model, layer, x, target, deferred=True)


def shapley_benchmark(
    model: nn.Module,
    images: dict[str, Tensor],
    layers: list[str],
    *,
    out: Path,
    shapes: int = 0,
    budgets: Iterable[int] = BUDGETS,
    peers: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Every estimator on every game against converged references; the public packages on the first `peers` images.

    shapes: images for a second network, see `shapes_network`. Writes shapley.csv, which is returned, into the folder
    `out` after every game; references are kept in its folder references/ and read from there. Columns: network, image,
    layer, players, estimator, budget, cost, error, correlation, coverage, seconds, reference_error. Beside it maps.csv has
    the correlations of the package grad-cam's maps with the same references (see `compare_maps`), where the head is nonlinear.
    """
    for layer in layers:  # before any work
        resolve_layer(model, layer)
    make_ready(out, out / "references")
    runs = [(model, images, layer) for layer in layers]
    if shapes:
        runs.append((*shapes_network(shapes, seed=seed), "features"))
    rows, maps, disable = [], [], None if progress is None else not progress
    with tqdm(total=sum(len(images) for _, images, _ in runs), disable=disable) as bar:
        for network, images, layer in runs:
            weights = fingerprint(network)
            for i, (name, _, game) in enumerate(games(network, images, [layer])):
                digest = hashlib.sha256(images[name].numpy().tobytes()).hexdigest()[:16]
                key = {
                    "weights": weights,
                    "image": digest,
                    "layer": layer,
                    "target": game.target,
                    "payoff": game.payoff,
                }
                tolerance = REFERENCE_TOLERANCE.get(layer, 0.008)
                truth, error = cached_reference(game, key, tolerance, seed + 1, out / "references")
                found = compare(game, truth, error, ESTIMATORS, budgets, seed)
                found += compare(game, truth, error, PEERS, PEER_BUDGETS, seed) if i < peers else []
                about = {"network": network.spec.name, "image": name, "layer": layer, "players": game.n_players}
                rows += [about | row | {"reference_error": error} for row in found]
                if game.kind != "additive":  # there Grad-CAM is CAM, and exact values cost less than any of them
                    maps += [about | row for row in compare_maps(network, layer, images[name], game.target, truth)]
                for file, found in (("shapley.csv", rows), ("maps.csv", maps)):
                    write_file(out / file, pd.DataFrame(found).round(6).to_csv(index=False))
                bar.update()
    return pd.DataFrame(rows)


def speed_benchmark(
    model: nn.Module, images: dict[str, Tensor], layers: Iterable[str], *, repeats: int = 5
) -> pd.DataFrame:
    """Seconds of Owen-CAM's default, grad-cam's GradCAM and Shap-CAM (m = 200), side by side, in turns, warmed up.

    Shap-CAM is timed once with 20 coalitions a position and multiplied by 10. Beside them the parts: a forward pass to
    the layer, and one evaluation and one gradient of the head, each a 32nd part of a batch, whose ratio
    `layers.GRADIENT_COST` stands for. Columns: image, layer, method, seconds (median over repeats), ratio to GradCAM's
    of the same image and layer, threads.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    rows = []
    for layer in layers:  # before any work
        resolve_layer(model, layer)
    for layer in layers:
        for name, x in images.items():
            with torch.no_grad():
                target = model(x).argmax(1)
            peer = GradCAM(model=model, target_layers=[model.get_submodule(layer)])
            inputs, wanted = x.clone().requires_grad_(True), [ClassifierOutputTarget(int(target))]
            features, game = split(model, layer)[0], LayerGame(model, layer, x, target, deferred=True)
            masks = torch.rand(32, game.n_players, generator=torch.Generator().manual_seed(0))
            runs = {
                "grad-cam's GradCAM": lambda p=peer, i=inputs, w=wanted: p(input_tensor=i, targets=w),
                "Owen-CAM": lambda la=layer, x=x, t=target: shap_cam.owen_cam(model, la, x, t),
                "Grad-CAM": lambda la=layer, x=x, t=target: cams.grad_cam(model, la, x, t),
                "Shap-CAM / 10": lambda la=layer, x=x, t=target: shap_cam.shap_cam(
                    model, la, x, t, samples_per_position=20, progress=False
                ),
                "forward to the layer": torch.no_grad()(lambda f=features, x=x: f(x)),
                "head, forward × 32": lambda g=game, m=masks: g.value(m),
                "head, forward and backward × 32": lambda g=game, m=masks: g.gradient(m),
            }
            seconds = {method: [] for method in runs}
            for repeat in range(repeats + 1):
                for method, run in runs.items():
                    if method == "Shap-CAM / 10" and repeat:
                        continue
                    start = time.perf_counter()
                    run()
                    if repeat or method == "Shap-CAM / 10":
                        seconds[method].append(time.perf_counter() - start)
            peer.activations_and_grads.release()
            median = {method: float(np.median(values)) for method, values in seconds.items()}
            median["Shap-CAM, m = 200"] = 10 * median.pop("Shap-CAM / 10")
            for batch in [method for method in median if method.endswith(" × 32")]:
                median[batch.removesuffix(" × 32")] = median.pop(batch) / 32
            rows += [
                {"image": name, "layer": layer, "method": method, "seconds": value}
                | {"ratio": value / median["grad-cam's GradCAM"], "threads": torch.get_num_threads()}
                for method, value in median.items()
            ]
    return pd.DataFrame(rows)


DEVELOPMENT = frozenset(  # photos that Owen-CAM's constants were chosen or first checked on: no evidence for it
    "bison bucket canyondechelly cathedral chamaeleon chicken fish_10 goat goldentemple greatstupa hammer_3 hammer_7 "
    "hammer_8 indiagate kangaroo lemur machupicchu measuringtape_5 measuringtape_6 monument_1 mysorepalace "
    "neuschwansteincastle owl pan pig polar_bear red_panda screwdriver_3 sheep spoons statueofliberty zimnipalace".split()
)


def fresh_photos(count: int, *, development: bool = False) -> list[Photo]:
    """`count` photos that no choice of Owen-CAM was made on, spread over the alphabet; development: of the others."""
    photos = [photo for photo in load_photos() if (photo.name in DEVELOPMENT) == development]
    count = min(count, len(photos))
    return [photos[i * len(photos) // count] for i in range(count)]


def photos_for(model: nn.Module, count: int) -> dict[str, Tensor]:
    """{name: x} of `fresh_photos`."""
    return {photo.name: preprocess(photo.image, model) for photo in fresh_photos(count)}


def shapes_network(count: int, *, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with a VGG-like fully connected head, trained on the spot on shapes, and `count` fresh images for it."""
    model, fresh = shapes_classifier("fc", epochs=14, seed=seed), make_shapes(count, seed=seed + 1)
    return model, {f"shape_{i:02d}": torch.from_numpy(fresh.images[i : i + 1]) for i in range(count)}
