"""Ten thousand calls of everything, a fifth of which fail somewhere inside, and nothing is left behind by any of them.

Small networks of seven forms, made and given up again; every method, metric, estimator and game, `explain` and `split`. Failures
are put at random places, drawn from one seed: an exception, an interrupt, a full memory or NaN in a module's forward or backward,
in a game's value, in a progress bar; a wrong layer, target, option or input. After every call the network and the process must be
as they were before it.
"""

import gc
import linecache
import mmap
import random
import warnings
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from cam_utils import METHODS, LayerGame, cams, checks, explain, games, layers, pointwise, sanity, shapley
from cam_utils.layers import candidate_layers, counting, evaluating, map_sizes, split
from cam_utils.metrics import BASELINES, METRICS
from cam_utils.models import ModelSpec
from cam_utils.owen import owen
from cam_utils.postprocess import heatmap
from conftest import gradient_of

CALLS, EARLY = 10_000, 2_000  # memory is compared between the two
LIVES = 250  # calls that a network serves before it is given up
SIZE = 8  # pixels


class Residual(nn.Module):
    """A block whose layer `inner` data flows around: the network cannot be cut there."""

    def __init__(self):
        super().__init__()
        self.inner, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.inner(x))


class Untraceable(nn.Module):
    """A block whose forward asks for values: torch.fx cannot trace the network."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.inner(x) if x.sum() < 1e9 else x


def network(form, seed):
    """One of seven forms of small networks for images of 8×8 pixels, maps of 4×4 and 2×2, three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = [nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=form != "half")]
        middle = {"residual": [Residual()], "untraceable": [Untraceable()], "deep": [nn.Conv2d(3, 3, 3, padding=1)]}
        maps = [nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
        head = [nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)]
        if form in ("gap", "residual", "frozen"):
            head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)]
        model = nn.Sequential()
        model.add_module("features", nn.Sequential(*stem, *middle.get(form, []), *maps))
        model.add_module("classifier", nn.Sequential(*head))
    names = (f"class {i}" for i in range(3))
    model.spec = ModelSpec(
        "small", "features", SIZE, SIZE, InterpolationMode.BILINEAR, (0.5,) * 3, (0.5,) * 3, tuple(names)
    )
    model.requires_grad_(form != "frozen")
    model.features[0].bias.requires_grad_(False)
    if form != "frozen":  # as in the midst of a training
        model.classifier[-1].weight.grad = torch.ones_like(model.classifier[-1].weight)
    return model.double() if form == "double" else model


FORMS = ("gap", "fc", "residual", "untraceable", "deep", "frozen", "double")


# what must not change


def state_of(model):
    """What a network looks like from outside: modes, hooks, attributes, gradients; and its tensors, by version and sum."""
    modules = [
        (m.training, tuple(m.__dict__), *(len(v) for k, v in m.__dict__.items() if k.endswith("_hooks")))
        for m in model.modules()
    ]
    tensors = [
        (t.requires_grad, gradient_of(t), t._version, t.data_ptr(), t.detach().sum().item()) for t in model.parameters()
    ]
    return modules, tensors, [(b._version, b.data_ptr()) for b in model.buffers()]


def process():
    """What a call could change for everybody in the process."""
    return {
        "torch's seed": torch.get_rng_state().numpy().tobytes(),
        "numpy's seed": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "Python's seed": hash(random.getstate()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "anomaly": torch.is_anomaly_enabled(),
        "warnings": [id(f) for f in warnings.filters],
        "tracing": (nn.Module.__call__, nn.Module.__getattr__),  # torch.fx patches both
        "counter": layers._counter.get(),
    }


def traces(before, after):
    """The names of what differs."""
    return [name for name in before if before[name] != after[name]]


@contextmanager
def nothing_left(model, x):
    """Fails if the block, whatever becomes of it, leaves a trace in the network, its input, or the process."""
    seen, around, pixels = state_of(model), process(), x._version
    try:
        yield
    finally:
        now = state_of(model)
        assert now[0] == seen[0], "a module's mode, hooks or attributes"
        assert now[1:] == seen[1:], "a parameter, its gradient or requires_grad, or a buffer"
        assert x._version == pixels and x.grad is None, "the input"
        assert not (found := traces(around, process())), found


def resident():
    """Bytes of memory that the process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


# what is called: name -> function of (model, layer, x, target, draws)


def heat_of(x):
    return torch.linspace(0, 1, SIZE * SIZE, dtype=x.dtype).view(1, SIZE, SIZE).expand(len(x), -1, -1)


OPTIONS = {  # so that a call takes a millisecond or ten
    "score_cam": {"batch_size": 2, "progress": None},
    "ablation_cam": {"batch_size": 3, "progress": None},
    "shap_cam": {"samples_per_position": 1, "progress": None},
    "owen_cam": {"budget": 7},
    "lime": {"n_samples": 6, "batch_size": 4, "n_segments": 4},
    "insertion": {"steps": 3, "baseline": "black"},
    "deletion": {"steps": 3},
    "road_morf": {"fractions": (0.3,)},
    "road_lerf": {"fractions": (0.3,)},
    "sensitivity_max": {"n_perturbations": 2},
}
FEW = {"score_cam", "shap_cam", "lime", "owen_cam", "road_morf", "road_lerf", "cascading_randomisation", "owen"}
FEW |= {"permutation", "per_position", "kernel_shap", "exact"}


def method(name, function):
    def call(model, layer, x, target, draws):
        return function(model, layer, x, target, **OPTIONS.get(name, {}))

    return call


def metric(name, about):
    arguments = {
        "faithfulness": lambda model, layer, x, target: (model, x, target, heat_of(x)),
        "method": lambda model, layer, x, target: (model, layer, x, target, cams.grad_cam),
        "map": lambda model, layer, x, target: (heat_of(x),),
        "region": lambda model, layer, x, target: (heat_of(x), heat_of(x) > 0.5),
        "shapley": lambda model, layer, x, target: (x.flatten(1), 2 * x.flatten(1)),
    }[about.needs]

    def call(model, layer, x, target, draws):
        return about.function(*arguments(model, layer, x, target), **OPTIONS.get(name, {}))

    return call


def estimator(name, function, budget=()):
    def call(model, layer, x, target, draws):
        game = LayerGame(model, layer, x[:1], target[:1], deferred=bool(draws.integers(2)))
        generator = () if name == "exact" else (torch.Generator().manual_seed(0),)
        with counting():
            return function(game, *budget, *generator).values

    return call


def play(model, layer, x, target, draws):
    game = LayerGame(model, layer, x[:1], target[:1], str(draws.choice(["probability", "logit", "log_odds"])), "zero")
    masks = torch.rand(3, game.n_players, generator=torch.Generator().manual_seed(0))
    return game.value(masks) + game.gradient(masks)[0]


def to_photo(model, layer, x, target, draws):
    pixels = (x[0].detach().float().clamp(-1, 1).permute(1, 2, 0) / 2 + 0.5).numpy()
    name = str(draws.choice(["grad_cam", "hires_cam", "ablation_cam"]))
    return explain(model, pixels, int(target[0]) if isinstance(target, torch.Tensor) else target, name, layer).heatmap()


def in_two(model, layer, x, target, draws):
    features, head = split(model, layer)
    with evaluating(model):  # which the two parts are meant for
        return head(features(x))


CALLED = {
    **{name: method(name, function) for name, function in (METHODS | BASELINES).items()},
    **{name: metric(name, about) for name, about in METRICS.items() if about.needs not in ("metrics", "cells")},
    "permutation": estimator("permutation", shapley.permutation, (40,)),
    "per_position": estimator("per_position", shapley.per_position, (40,)),
    "kernel_shap": estimator("kernel_shap", shapley.kernel_shap, (24,)),
    "owen": estimator("owen", owen, (9,)),
    "exact": estimator("exact", shapley.exact),
    "LayerGame": play,
    "explain": to_photo,
    "split": in_two,
    "candidate_layers": lambda model, layer, x, target, draws: candidate_layers(model, x)[1],
    "map_sizes": lambda model, layer, x, target, draws: map_sizes(model, x),
    "heatmap": lambda model, layer, x, target, draws: heatmap(cams.grad_cam(model, layer, x, target), SIZE),
}


# what goes wrong


class Injected(Exception):
    """An error of nobody's."""


ERRORS = (
    Injected,
    RuntimeError,
    ValueError,
    MemoryError,
    torch.OutOfMemoryError,
    KeyboardInterrupt,
    NotImplementedError,
)


class Failing:
    """Counts down in a place that a call comes through, then does what is to go wrong."""

    def __init__(self, place, error, after):
        self.place, self.error, self.left, self.happened = place, error, after, False

    def due(self):
        self.left -= 1
        self.happened |= self.left < 0
        return self.left < 0

    def __call__(self, *_):
        if self.due():
            raise self.error(f"injected into {self.place}")


@contextmanager
def in_forward(module, fault):
    """`module`, or a copy of it, raises in its forward; fault.error None: it puts out NaN."""

    def forward(self, *args):
        if fault.error is not None:
            fault()
        output = super(type(self), self).forward(*args)
        return output * float("nan") if fault.error is None and fault.due() else output

    with of_another_class(module, forward):
        yield


@contextmanager
def in_backward(module, fault):
    """`module`, or a copy of it, raises where the gradient of its output comes back."""

    def forward(self, *args):
        output = super(type(self), self).forward(*args)
        if output.requires_grad:
            output.register_hook(fault)
        return output

    with of_another_class(module, forward):
        yield


@contextmanager
def of_another_class(module, forward):
    """`module` with another forward, which torch.fx takes for torch's own where it did so before."""
    own = type(module)
    module.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})
    try:
        yield
    finally:
        module.__class__ = own


@contextmanager
def in_game(fault, what):
    """A game's value or gradient raises."""
    original = getattr(LayerGame, what)

    def failing(self, masks):
        fault()
        return original(self, masks)

    with mock.patch.object(LayerGame, what, failing):
        yield


@contextmanager
def in_bar(fault):
    """A progress bar raises."""

    def bar(items, *_, **__):
        for item in items:
            fault()
            yield item

    with ExitStack() as stack:
        for module in (checks, shapley, sanity):
            stack.enter_context(mock.patch.object(module, "tqdm", bar))
        yield


def wrong(kind, layer, x, target, draws):
    """(layer, x, target) of which one is wrong."""
    if kind == "layer":
        others = ["features.99", "", nn.ReLU(), "classifier", "classifier.0", None]
        layer = others[draws.integers(len(others))]
    elif kind == "target":
        target = [torch.tensor([7]), torch.tensor([-1]), torch.tensor([0.5]), "dog"][draws.integers(4)]
    else:
        x = [x * float("nan"), x[0], x[:0], x.long(), x[:, :2]][draws.integers(5)]
    return layer, x, target


PLACES = ("forward", "forward", "NaN", "backward", "value", "gradient", "bar", "layer", "target", "input")


def one_call(model, name, draws, happened):
    """One call, perhaps with a failure inside; {what happened} is counted. The last failure is not kept."""
    modules = [module for path, module in model.named_modules() if path]
    like = next(model.parameters())
    x = torch.from_numpy(draws.standard_normal((int(draws.integers(1, 3)), 3, SIZE, SIZE))).to(like.dtype)
    target = torch.from_numpy(draws.integers(0, 3, len(x)))
    layer = str(draws.choice(["features", "features.0", "features.2", "features.3", "features.4"]))
    if name == "exact":
        layer = "features"  # 2^4 coalitions, not 2^16
    model.train(bool(draws.integers(2)))
    modules[draws.integers(len(modules))].training = bool(draws.integers(2))
    given, fault, place = x, nullcontext(), None
    if draws.random() < 0.6:
        place = str(draws.choice(PLACES))
        leaves = [module for module in modules if not any(module.children())]
        among = leaves if place == "NaN" else modules  # in a container it would be traced into what `split` remembers
        module = among[draws.integers(len(among))]
        error = ERRORS[draws.integers(len(ERRORS))] if place != "NaN" else None
        failing = Failing(place, error, int(draws.choice([0, 0, 1, 4])))
        if place in ("layer", "target", "input"):
            layer, given, target = wrong(place, layer, x, target, draws)
        else:
            fault = {
                "forward": lambda: in_forward(module, failing),
                "NaN": lambda: in_forward(module, failing),
                "backward": lambda: in_backward(module, failing),
                "value": lambda: in_game(failing, "value"),
                "gradient": lambda: in_game(failing, "gradient"),
                "bar": lambda: in_bar(failing),
            }[place]()
    caller = (torch.enable_grad, torch.no_grad, torch.inference_mode)[draws.integers(3)]
    with fault, caller(), nothing_left(model, x):
        try:
            CALLED[name](model, layer, given, target, draws)
        except (Exception, KeyboardInterrupt) as error:
            happened["failed"] += 1
            happened[f"failed by {place}"] += 1
            happened[f"failed in {name}"] += 1
            happened[f"raised {type(error.__cause__ or error).__name__}"] += 1
            if place is None:
                happened[f"unprovoked: {name}: {type(error).__name__}: {error}"] += 1
            if "injected into" in str(error):
                happened["injected"] += 1
                happened[f"at {place}, module {getattr(module, '_get_name', str)()}"] += 1


def cached():
    """How many networks, or parts of some, the caches of the package know."""
    for _ in range(3):  # a network, then what it was cut into, then the parts of that
        gc.collect()
    return sum(map(len, (layers._SPLITS, pointwise._PARTS, games._POINTWISE)))


def given_up(before):
    """Fails where a cache keeps what belongs to a network that nobody has any more; before: `cached` without that network."""
    assert cached() <= before, "a cache outlives its network"


def memory():
    """Objects, but for those of torch.fx, which keeps the source of all that it generates; tensors; bytes."""
    things = gc.get_objects()
    tensors = sum(type(thing) in (torch.Tensor, nn.Parameter) for thing in things)
    return {"objects": len(things) - 2 * len(linecache.cache), "tensors": tensors, "bytes": resident()}


def grown(early, late, calls):
    """What has grown from one `memory` to a later one: objects by more than a quarter a call, tensors by more than eight in all
    (additive._design keeps four for a number of players), bytes by more than 2 kB a call.
    """
    most = {"objects": calls / 4, "tensors": 8, "bytes": 2_000 * calls}
    return [f"{name}: {early[name]} -> {late[name]}" for name in most if late[name] - early[name] > most[name]]


@pytest.fixture
def alone():
    """The collector looks at nothing that was there before the test."""
    gc.collect()
    gc.freeze()
    yield cached()
    gc.unfreeze()


def test_ten_thousand_calls_of_which_a_fifth_fail_leave_no_trace(alone):
    draws, happened, model, used, alive = np.random.default_rng(0), Counter(), None, {}, []
    names, weights = zip(*((name, 0.25 if name in FEW else 1.0) for name in CALLED), strict=True)
    chosen = draws.choice(len(names), CALLS, p=np.array(weights) / sum(weights))
    for i, name in enumerate(names[k] for k in chosen):
        if i % LIVES == 0:
            model = None
            given_up(alone)
            assert not any(reference() is not None for reference in alive), "a network that was given up is alive"
            used[i] = memory()
            model = network(FORMS[i // LIVES % len(FORMS)], seed=i)
            alive = [weakref.ref(module) for module in model.modules()]
        try:
            one_call(model, name, draws, happened)
        except AssertionError as error:
            raise AssertionError(f"call {i}, {name}, leaves a trace: {error}") from None
    model = None
    given_up(alone)
    assert not grown(used[EARLY], memory(), CALLS - EARLY)
    # and all that was to fail has failed
    assert happened["failed"] > CALLS / 5 and happened["injected"] > CALLS / 20
    assert sum(what.startswith("at ") for what in happened) > 40  # places: kinds of failure times kinds of modules
    assert all(happened[f"failed by {place}"] > 20 for place in PLACES)
    assert all(happened[f"raised {error.__name__}"] > 20 for error in ERRORS)
    without = {name for name, about in METRICS.items() if about.needs in ("map", "region", "shapley")}  # a network
    assert not [name for name in CALLED if name not in without and not happened[f"failed in {name}"]]
    unprovoked = [what for what in happened if what.startswith("unprovoked: ")]
    assert all("CAM needs a network in which" in what for what in unprovoked), unprovoked


LEAKS = {  # what a careless method might leave behind
    "a forward hook": lambda model, x: model.features[0].register_forward_hook(print),
    "a hook before the forward": lambda model, x: model.register_forward_pre_hook(print),
    "a backward hook": lambda model, x: model.classifier[0].register_full_backward_hook(print),
    "evaluation mode": lambda model, x: model.eval(),
    "training mode of one module": lambda model, x: setattr(model.classifier[1], "training", False),
    "a frozen parameter": lambda model, x: next(model.parameters()).requires_grad_(False),
    "a gradient": lambda model, x: setattr(model.features[0].weight, "grad", torch.zeros(3, 3, 3, 3)),
    "no gradient where one was": lambda model, x: model.zero_grad(),
    "more of a gradient": lambda model, x: model.classifier[-1].weight.grad.add_(1),
    "another weight": lambda model, x: next(model.parameters()).data.fill_(1),
    "another parameter": lambda model, x: setattr(model.features[0], "bias", nn.Parameter(torch.zeros(3))),
    "statistics of the batch": lambda model, x: model(x),
    "an attribute": lambda model, x: setattr(model, "activation", x),
    "another input": lambda model, x: x.add_(1),
    "torch's seed": lambda model, x: torch.rand(1),
    "numpy's seed": lambda model, x: np.random.rand(1),  # noqa: NPY002
    "Python's seed": lambda model, x: random.random(),
    "grad mode": lambda model, x: torch.set_grad_enabled(False),
    "threads": lambda model, x: torch.set_num_threads(torch.get_num_threads() + 1),
    "the default dtype": lambda model, x: torch.set_default_dtype(torch.float64),
    "deterministic algorithms": lambda model, x: torch.use_deterministic_algorithms(True),
    "anomaly detection": lambda model, x: torch.autograd.set_detect_anomaly(True),
    "a filter of warnings": lambda model, x: warnings.simplefilter("ignore"),
    "a counter": lambda model, x: layers._counter.set(layers.Counter()),
}


@pytest.fixture
def put_back():
    """The process as it was."""
    threads, counter = torch.get_num_threads(), layers._counter.get()
    yield
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    layers._counter.set(counter)


@pytest.mark.parametrize("leak", LEAKS)
def test_what_is_left_behind_is_seen(leak, put_back, monkeypatch):
    model, x = network("gap", 0).train(), torch.rand(2, 3, SIZE, SIZE)
    with warnings.catch_warnings():
        with nothing_left(model, x):
            CALLED["grad_cam"](model, "features", x, 0, None)
        with pytest.raises(AssertionError), nothing_left(model, x):
            LEAKS[leak](model, x)


def test_what_grows_is_seen(alone):
    before, kept = memory(), []
    for i in range(100):
        pages = mmap.mmap(-1, 400_000)  # from the system, whatever the process has at hand
        pages.write(bytes(400_000))
        kept.append([torch.ones(1), {"call": [i]}, pages])
    assert [what.partition(":")[0] for what in grown(before, memory(), 100)] == ["objects", "tensors", "bytes"]
    model = network("fc", 0)
    split(model, "features")
    with pytest.raises(AssertionError, match="outlives"):
        given_up(alone)
    del model
    given_up(alone)
