"""What half, single and double precision do to a map: `python -m cam_utils benchmark precision`.

Every method explains the same class of the same photos through copies of one network in each precision; the maps are compared
with those in float64. The rounding of a network's own arithmetic is what differs: nothing is drawn anew, as the generators are
seeded alike, and LIME gets the segments of the photo as the network is given it.
"""

import copy
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .cams import NotDefined
from .explanation import METHODS, check_options
from .layers import map_sizes
from .lime import superpixels
from .metrics import pearson, shapley_error

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OPTIONS = {"shap_cam": {"samples_per_position": 10}, "lime": {"n_samples": 100}}  # enough to see a rounding
MANY = 500  # channels, for each of which Score-CAM passes the whole network


def maps_in(
    dtype: torch.dtype, model: nn.Module, layer: str, x: Tensor, target: int, methods: Iterable[str]
) -> dict[str, Tensor]:
    """{method: its map of x (1,3,H,W)} by a copy of the network in the precision `dtype`."""
    copied, found = copy.deepcopy(model).to(dtype), {}
    for method in methods:
        options = {"progress": False} if "progress" in check_options(method) else {}
        if method == "lime":
            options["segments"] = superpixels(model, x)
        found[method] = METHODS[method](copied, layer, x.to(dtype), target, **options, **OPTIONS.get(method, {}))
    return found


def precision_benchmark(
    model: nn.Module,
    images: dict[str, Tensor],
    layers: Iterable[str],
    *,
    methods: Iterable[str] = tuple(METHODS),
    progress: bool | None = None,
) -> pd.DataFrame:
    """How far the maps in float32, float16 and bfloat16 are from those in float64, over images {name: x (1,3,H,W)}.

    The class is the top one of the network as given. Left out are CAM where it is not defined, Score-CAM at layers of more
    than 500 channels, and LIME, which has no layer, at all layers but the first. Columns: layer, method,
    precision, images, correlation_median, correlation_worst, error_median, error_worst (relative to the norm of the map).
    """
    rows, layers, disable = [], list(layers), None if progress is None else not progress
    with tqdm(total=len(layers) * len(images), disable=disable) as bar:
        for layer in layers:
            for name, x in images.items():
                with torch.no_grad():
                    target = int(model(x).argmax())
                suited = _suited(model, layer, x, target, methods, first=layer == layers[0])
                truth = maps_in(torch.float64, model, layer, x, target, suited)
                for precision, dtype in PRECISIONS.items():
                    for method, found in maps_in(dtype, model, layer, x, target, suited).items():
                        row = {"layer": layer, "method": method, "precision": precision, "image": name}
                        row["correlation"] = float(pearson(found, truth[method]))
                        rows.append(row | {"error": float(shapley_error(found, truth[method]))})
                bar.update()
    grouped = pd.DataFrame(rows).groupby(["layer", "method", "precision"], sort=False)
    return grouped.agg(
        images=("image", "count"),
        correlation_median=("correlation", "median"),
        correlation_worst=("correlation", "min"),
        error_median=("error", "median"),
        error_worst=("error", "max"),
    ).reset_index()


def _suited(model: nn.Module, layer: str, x: Tensor, target: int, methods: Iterable[str], *, first: bool) -> list[str]:
    unsuited = set() if first else {"lime"}
    if map_sizes(model, x)[layer][0] > MANY:
        unsuited.add("score_cam")
    try:
        METHODS["cam"](model, layer, x, target)
    except NotDefined:
        unsuited.add("cam")
    return [method for method in methods if method not in unsuited]
