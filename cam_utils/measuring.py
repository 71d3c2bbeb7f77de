"""One image at one layer of one network, by every method and every metric: `measure`, which any process can run.

The random numbers of a method come from a generator seeded by the image and the method; those of a metric from one seeded
by the image and the metric, so that all methods meet the same.
"""

import hashlib
import inspect
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from .benchmark import fingerprint, reference
from .cams import grad_cam
from .engine import Job, describe
from .explanation import METHODS
from .games import LayerGame
from .layers import counting, evaluating, folded
from .metrics import BASELINES, METRICS
from .postprocess import heatmap, upsample
from .shap_cam import owen_cam
from .subjects import Picture, cells_of, load, pretrained

COLUMNS = tuple("set model layer image target label score method metric value seconds evaluations".split())
EVERY_METHOD = METHODS | BASELINES
SHAPLEY = ("shap_cam", "owen_cam")  # whose maps are Shapley values of the layer's positions
CHANGING = ("cascading_randomisation",)  # the network's weights, and needs all of its modules for that
_REST = frozenset(  # compute no value of the table
    "__init__ __main__ chosen cli compare engine experiments explorer files language networks notebooks packages paths "
    "plotting precision reproduce shell statistics tokens".split()
)
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-image", "pillow")
_ONE_AT_A_TIME = threading.Lock()  # the hooks of two explanations must not meet in one network
_networks: dict[str, nn.Module] = {}  # of this process, by fingerprint
_quick: dict[tuple[str, str], nn.Module] = {}  # the same by fingerprint and layer, `folded`, and run once


@dataclass(frozen=True, eq=False)
class Task:
    """What `measure` needs to know of a shard; picklable."""

    picture: Picture
    model: str
    weights: str  # the network's fingerprint
    layer: str
    methods: dict[str, dict]  # with their options
    metrics: dict[str, dict]
    skip: tuple[tuple[str, str], ...]  # method and metric that would take too long
    tolerance: float | None  # relative error of the Shapley values to compare with; None: no comparison
    seed: int
    threads: int

    @property
    def job(self) -> Job:
        """The task with a key whose digest is of all that its rows depend on."""
        picture = [self.picture.set, self.picture.name, self.picture.digest, self.picture.labels]
        known = [*picture, self.model, self.weights, self.layer, self.methods, self.metrics, self.skip]
        known += [self.tolerance, self.seed, self.threads, environment()]  # threads: the last digits
        digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]
        name = f"{self.picture.set} {self.picture.name}, {self.model} at {self.layer}"
        return Job(name, f"{digest}-{self.picture.set}", self)


@cache
def environment() -> dict[str, str]:
    """What a value depends on beside its task: the sources of this package that compute it, and the versions of others."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem not in _REST:
            digest.update(file.name.encode() + file.read_bytes())
    return {"cam_utils": digest.hexdigest()[:16]} | {name: version(name) for name in _PACKAGES}


environment()  # now, while the files are still those that were imported


def prepare(expected: dict[str, str], networks: dict[str, nn.Module]) -> None:
    """Make this process know networks by their fingerprints. Raises RuntimeError if its packages are not as expected."""
    differ = [f"{name} {environment()[name]} instead of {value}" for name, value in expected.items()
              if environment()[name] != value]  # fmt: skip
    if differ:
        raise RuntimeError(f"this process has {', '.join(differ)}: install the same on every machine")
    _networks.update(networks)


def measure(task: Task) -> tuple[list[dict], dict[str, str]]:
    """The rows of a task, see COLUMNS, and {method or method, metric: why it failed}.

    The explained class is the network's top class; in a mosaic each of its four. seconds and evaluations: of the method, for
    one map. The method "reference" stands for the converged Shapley values, its shapley_error for their own standard error.
    """
    with _ONE_AT_A_TIME:
        torch.set_num_threads(task.threads)
        network, picture = _network(task.model, task.weights), task.picture
        x = load(picture, network)
        model = _quickened(network, task, x)
        with evaluating(model), torch.no_grad():
            probabilities = model(x).softmax(1)[0]
        target = torch.tensor(picture.labels) if len(picture.labels) > 1 else probabilities.argmax()[None]
        labels = picture.labels if len(picture.labels) > 1 else picture.labels or ("",)
        x = x.repeat(len(target), 1, 1, 1)
        rows, failures, truth = [], {}, None

        def add(method: str, values: dict[str, Tensor], seconds: float, evaluations: float) -> None:
            about = {"set": picture.set, "model": task.model, "layer": task.layer, "image": picture.name}
            cost = {"seconds": round(seconds / len(target), 6), "evaluations": evaluations / len(target)}
            for metric, value in values.items():
                for c, label, one in zip(target.tolist(), labels, value.tolist(), strict=True):
                    case = {"target": c, "label": label, "score": float(probabilities[c])}
                    rows.append(about | case | {"method": method, "metric": metric, "value": one} | cost)

        if task.tolerance is not None:
            try:
                start = perf_counter()
                game = LayerGame(model, task.layer, x[:1], target[:1], deferred=True)
                found = reference(game, task.tolerance, _generator(task, "reference"))
                seconds, truth = perf_counter() - start, found.values[None]
                own_error = found.standard_error.norm() / found.values.norm()
                add("reference", {"shapley_error": own_error[None]}, seconds, found.n_evaluations)
            except Exception as error:
                failures["reference"] = describe(error)
        for name in task.methods:
            method = _method(task, name)
            try:
                start = perf_counter()
                with counting() as counter:
                    maps = method(model, task.layer, x, target)
                seconds = perf_counter() - start
                values, failed = _values(task, name, method, network, model, x, target, maps, truth)
            except Exception as error:
                failures[name] = describe(error)
                continue
            failures |= failed
            add(name, values, seconds, counter.total)
        return rows, failures


def _values(
    task: Task,
    name: str,
    method: Callable,
    network: nn.Module,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    maps: Tensor,
    truth: Tensor | None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{metric: (N,)} of one method's maps, and {method, metric: why it failed}. model: the network, or `folded`."""

    def again(m: nn.Module, layer: str, inputs: Tensor, c: Tensor) -> Tensor:
        return maps if (m is model or m is network) and inputs is x else method(m, layer, inputs, c)

    size, heat = tuple(x.shape[2:]), heatmap(maps, x.shape[2:])
    arguments = {
        "faithfulness": (model, x, target, heat),
        "map": (heat,),
        "method": (model, task.layer, x, target, again),
    }
    if task.picture.region is not None:
        arguments["region"] = (heat, torch.from_numpy(task.picture.region)[None].to(x.device))
    if task.picture.set == "mosaics":
        arguments["cells"] = (upsample(maps, size), cells_of(x), torch.arange(len(x)))
    if truth is not None and name in SHAPLEY:
        arguments["shapley"] = (maps.flatten(1), truth)
    values, failures = {}, {}
    for metric, options in task.metrics.items():
        about = METRICS[metric]
        try:
            if about.needs in arguments and (name, metric) not in task.skip:
                given = (network, *arguments["method"][1:]) if metric in CHANGING else arguments[about.needs]
                values[metric] = _call(about.function, task, metric, given, options)
            elif about.needs == "metrics" and all(part in values for part in about.of):
                values[metric] = about.function(**{part: values[part] for part in about.of})
        except Exception as error:
            failures[f"{name}, {metric}"] = describe(error)
    if task.picture.watermark is not None and "energy_pointing_game" in task.metrics:
        mark = torch.from_numpy(task.picture.watermark)[None].to(x.device)
        values["watermark_share"] = METRICS["energy_pointing_game"].function(heat, mark)
    return values, failures


def _method(task: Task, name: str) -> Callable[..., Tensor]:
    """The method with its options. Called again, it goes on drawing from one generator: its noise is part of it."""
    function, options = EVERY_METHOD[name], task.methods[name]
    known, extra = inspect.signature(function).parameters, {}
    if "generator" in known:
        extra["generator"] = _generator(task, name)
    if "progress" in known:
        extra["progress"] = False

    def method(model: nn.Module, layer: str, x: Tensor, target: Tensor) -> Tensor:
        return function(model, layer, x, target, **options, **extra)

    return method


def _call(function: Callable, task: Task, metric: str, arguments: tuple, options: dict) -> Tensor:
    known, extra = inspect.signature(function).parameters, {}
    if "generator" in known or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        extra["generator"] = _generator(task, metric)
    if "progress" in known:
        extra["progress"] = False
    value = function(*arguments, **options, **extra)
    if value.isnan().any():
        raise ValueError("the value is NaN")
    return value


def _generator(task: Task, purpose: str) -> torch.Generator:
    text = json.dumps([task.seed, task.picture.set, task.picture.name, purpose])
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))


def _network(name: str, weights: str) -> nn.Module:
    if weights not in _networks:
        model = pretrained(name)
        if (found := fingerprint(model)) != weights:
            raise ValueError(
                f"the weights of {name} here are others ({found}) than where the run was started ({weights})"
            )
        _networks[weights] = model
    return _networks[weights]


def _quickened(network: nn.Module, task: Task, x: Tensor) -> nn.Module:
    """`folded`, and once in a process cut and run both ways, so that no method pays for the first use."""
    key = task.weights, task.layer
    if key not in _quick:
        try:
            _quick[key] = model = folded(network, task.layer, x)
            target = torch.zeros(1, dtype=torch.long, device=x.device)
            grad_cam(model, task.layer, x, target)
            owen_cam(model, task.layer, x, target)
        except Exception:  # it will be met again, where it is reported
            _quick.setdefault(key, network)
    return _quick[key]
