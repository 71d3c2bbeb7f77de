"""Kinds of arguments: targets, masks, budgets, generators, options, heat maps, games, what is plotted and tested."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

from cam_utils import METHODS, LayerGame, explain, metrics
from cam_utils.models import IMAGENET_CLASSES, resolve_target
from cam_utils.owen import owen
from cam_utils.perturb import replacement
from cam_utils.plotting import overlay, plot_contact_sheet, plot_explanations, plot_maps, save_figure
from cam_utils.postprocess import heatmap, normalize, rectify, upsample
from cam_utils.road import impute
from cam_utils.shapley import exact, kernel_shap, per_position, permutation
from cam_utils.statistics import holm, mean_interval, signed_rank
from conftest import toy_cnn
from kinds import answered, noise, refused, run, with_spec

# --- targets of the methods: a class id for each image

IDS = "target must be an integer class id for each of the 2 images, or one for all, not {}"
for what, target, message in [
    ("a negative target", -1, r"target .*-1.* is out of range: the model's classes are 0 to 2"),
    ("a target beyond the last class", 3, "is out of range: the model's classes are 0 to 2"),
    ("one target beyond the last class", torch.tensor([0, 7]), "7.* is out of range: the model's classes are 0 to 2"),
    ("a target of too many digits", 2**70, IDS.format(str(2**70))),
    ("a float for a target", 1.0, IDS.format("1.0")),
    ("NaN for a target", torch.tensor([0, torch.nan]), IDS.format(r"\[0.0, nan\]")),
    ("a bool for a target", True, IDS.format("True")),
    ("None for a target", None, IDS.format("None")),
    ("a name for a method's target", "tabby", IDS.format("tabby")),
    ("a complex target", torch.tensor(1j), IDS.format("1j")),
    ("too many targets", [0, 1, 2], IDS.format(r"\[0, 1, 2\]")),
    ("no target", [], IDS.format(r"\[\]")),
    ("targets of two dimensions", torch.zeros(2, 1, dtype=torch.long), IDS.format(r"\[\[0\], \[0\]\]")),
    ("one-hot targets", torch.eye(2, 3, dtype=torch.long), IDS.format(r"\[\[1, 0, 0\], ")),
    ("rows of different lengths for a target", [[0], [0, 1]], IDS.format(r"\[\[0\], \[0, 1\]\]")),
    ("a target on the device meta", torch.zeros(2, dtype=torch.long, device="meta"), IDS.format("tensor")),
]:
    refused(what, ValueError, message, lambda b, m, t=target: run(m, b.net, "features", b.x, t), METHODS)
for what, target in [
    ("one target for all images", 1),
    ("targets in a list", [1, 1]),
    ("targets in an array", np.array([1, 1])),
    ("targets of one byte", torch.tensor([1, 1], dtype=torch.uint8)),
    ("a target in a row", torch.tensor([1])),
    ("a target of numpy", np.int64(1)),
]:
    answered(
        what,
        lambda b, m, t=target: run(m, b.net, "features", b.x, t),
        lambda b, m: run(m, b.net, "features", b.x, torch.tensor([1, 1])),
        ["cam", "grad_cam", "score_cam", "owen_cam", "lime"],
    )

# --- targets of explain: a class id or a name


def imagenet(target):
    """What is resolved among ImageNet's names."""
    return lambda b: resolve_target(with_spec(b.net, class_names=IMAGENET_CLASSES), target)


RANGE = "is out of range: the model's classes are 0 to 999"
NEITHER = "target must be a class id or a class name, not "
for what, target, message in [
    ("an id below zero", -1, f"target -1 {RANGE}"),
    ("an id that is too large", 1000, f"target 1000 {RANGE}"),
    ("an id in a text that is too large", "1000", f"target 1000 {RANGE}"),
    ("a negative id in a text", "-1", "no class is named '-1'"),
    ("a float for an id", 1.7, NEITHER + "1.7"),
    ("a bool for an id", False, NEITHER + "False"),
    ("a bool of numpy for an id", np.True_, NEITHER + "np.True_"),
    ("a bool in a tensor for an id", torch.tensor(True), NEITHER + r"tensor\(True\)"),
    ("None to be resolved", None, NEITHER + "None"),
    ("a list of ids", [1, 2], NEITHER + r"\[1, 2\]"),
    ("bytes for a class", b"tabby", NEITHER + "b'tabby'"),
    ("a name that no class has", "qqqqq", "no class is named 'qqqqq'"),
    ("a name with a slip", "tigercat", "no class is named 'tigercat'. Did you mean: tiger cat"),
    ("a part of a name", "shepherd", "Did you mean: .*german shepherd"),
    ("an empty name", "", "no class is named ''"),
    (
        "a name of two classes but for its case",
        "CARDIGAN",
        "several classes are named 'CARDIGAN': give one of the ids 264, 474",
    ),
]:
    refused(what, ValueError, message, imagenet(target))
for what, target, expected in [
    ("an id in a text", "281", 281),
    ("an id of numpy", np.uint8(7), 7),
    ("an id in a tensor", torch.tensor(281), 281),
    ("digits of another script", "٢٨١", 281),
    ("a name in another case", "TABBY", 281),
    ("a name that differs from another in its case", "cardigan", 474),
    ("the other one", "Cardigan", 264),
    ("a name that begins another", "crane", 517),
    ("another name that begins another", "maillot", 638),
]:
    answered(what, imagenet(target), lambda b, expected=expected: expected)
refused(
    "a name that two classes have",
    ValueError,
    "several classes are named 'crane': give one of the ids 0, 2",
    lambda b: resolve_target(with_spec(b.net, class_names=("crane", "dog", "crane")), "crane"),
)
refused(
    "explaining a class that is not there",
    ValueError,
    "Did you mean: a cat",
    lambda b: explain(b.net, Image.new("L", (9, 9)), "cat"),
)
answered(
    "no target for explain",
    lambda b: explain(b.net, Image.new("L", (9, 9)), None, "grad_cam").target,
    lambda b: IMAGENET_CLASSES and explain(b.net, Image.new("L", (9, 9)), None, "cam").target,
)

# --- the game of a layer


def game(bench, target=1, **options):
    return LayerGame(bench.net, "features", bench.x[:1], target, **options)


CHOICE = "payoff must be one of probability, logit, log_odds, not "
for what, options, message in [
    ("an unknown payoff", {"payoff": "score"}, CHOICE + "'score'"),
    ("None for a payoff", {"payoff": None}, CHOICE + "None"),
    ("a list for a payoff", {"payoff": ["logit"]}, CHOICE + r"\['logit'\]"),
    ("an unknown baseline", {"baseline": "blur"}, 'baseline must be "mean", "zero" or a tensor, not'),
    ("None for a baseline", {"baseline": None}, 'baseline must be "mean", "zero" or a tensor, not None'),
    ("a number for a baseline", {"baseline": 0.5}, 'baseline must be "mean", "zero" or a tensor, not 0.5'),
    ("an array for a baseline", {"baseline": np.zeros(3)}, 'baseline must be "mean", "zero" or a tensor, not array'),
    (
        "a baseline of another shape",
        {"baseline": torch.zeros(5)},
        r"baseline \(5,\) does not broadcast to the activation",
    ),
    ("NaN in a baseline", {"baseline": torch.tensor(torch.nan)}, "baseline must be real and finite"),
    ("infinity in a baseline", {"baseline": torch.tensor(torch.inf)}, "baseline must be real and finite"),
    (
        "a complex baseline",
        {"baseline": torch.tensor(1j)},
        "baseline must be real and finite, this one is torch.complex64",
    ),
    ("a baseline on the device meta", {"baseline": torch.zeros(1, device="meta")}, "baseline must be real and finite"),
]:
    refused(what, ValueError, message, lambda b, _, o=options: game(b, **o), ["LayerGame"])
    over = [m for m in ("shap_cam", "owen_cam") if "on the device" not in what]
    refused(what, ValueError, message, lambda b, m, o=options: run(m, b.net, "features", b.x, 0, **o), over)
refused(
    "a game on two images",
    ValueError,
    "played on one image .*not on 2: make one for each",
    lambda b: LayerGame(b.net, "features", b.x, 0),
)
refused(
    "a game of a class that is not there",
    ValueError,
    "out of range: the model's classes are 0 to 2",
    lambda b: game(b, 3),
)

MASKS = r"masks must be real \(M,36\), not torch.float64 "
for what, masks, message in [
    ("masks of another width", lambda m: m[:, :35], MASKS + r"\(4, 35\)"),
    ("a mask without its batch", lambda m: m[0], MASKS + r"\(36,\)"),
    ("masks in rows and columns", lambda m: m.view(4, 6, 6), MASKS + r"\(4, 6, 6\)"),
    ("masks above one", lambda m: 2 * m + 0.1, r"masks must lie in \[0,1\], without NaN: 1 keeps"),
    ("masks below zero", lambda m: -m - 0.1, r"masks must lie in \[0,1\]"),
    ("masks of bytes up to 255", lambda m: (255 * m.round()).to(torch.uint8), r"masks must lie in \[0,1\]"),
    ("NaN in masks", lambda m: m.where(m < 0.5, torch.nan), r"masks must lie in \[0,1\], without NaN"),
    ("None for masks", lambda m: None, r"masks must be numbers \(M,36\), not NoneType"),
    ("a text for masks", lambda m: "all", r"masks must be numbers \(M,36\), not str"),
    ("masks of different lengths", lambda m: [[0] * 36, [0] * 35], "masks must be numbers .* not list"),
    ("complex masks", lambda m: m + 0j, r"masks must be real \(M,36\), not torch.complex128"),
    ("sparse masks", lambda m: m.round().to_sparse(), "masks must be dense and have values, not torch.sparse_coo"),
    ("masks on the device meta", lambda m: m.to("meta"), "masks must be dense and have values, not .* on meta"),
]:
    for part in ("value", "gradient"):
        refused(
            what,
            ValueError,
            message,
            lambda b, part, f=masks: getattr(game(b), part)(f(noise(4, 36).sigmoid())),
            [part],
        )
for what, masks in [
    ("masks of bools", lambda m: m > 0),
    ("masks of whole numbers", lambda m: m.long()),
    ("masks of bytes", lambda m: m.to(torch.uint8)),
    ("masks in single precision", lambda m: m.float()),
    ("masks in a list", lambda m: m.tolist()),
    ("masks in an array", lambda m: m.numpy()),
    ("masks that require a gradient", lambda m: m.clone().requires_grad_(True)),
    ("masks that are not contiguous", lambda m: m.T.contiguous().T),
]:
    for payoff in ("probability", "logit"):
        answered(
            what,
            lambda b, payoff, f=masks: game(b, payoff=payoff).value(f((noise(4, 36) > 0).double())),
            lambda b, payoff: game(b, payoff=payoff).value((noise(4, 36) > 0).double()),
            [payoff],
        )
answered("no mask at all", lambda b: game(b).value(torch.zeros(0, 36)).shape, lambda b: torch.Size([0]))

# --- estimators: budgets, generators, games that are none


class Game:
    """A game of numbers: v(S) = the sum of the players' numbers in S."""

    def __init__(self, n=4, value=None):
        self.n_players = n
        self.value = value or (lambda masks: masks.double() @ torch.arange(1.0, n + 1, dtype=torch.float64))


def draws():
    return torch.Generator().manual_seed(0)


SAMPLERS = [permutation, per_position, kernel_shap]
EVERY = [*SAMPLERS, lambda game, budget, generator: exact(game)]
EVERY[-1].__name__ = "exact"
FINITE = "a budget is a finite number of evaluations, at most 10,000,000, not "
for what, budget, message in [
    ("a budget of NaN", float("nan"), FINITE + "nan"),
    ("an infinite budget", float("inf"), FINITE + "inf"),
    ("a budget that no memory holds", 1e300, FINITE + r"1e\+300"),
    ("a budget in a text", "64", FINITE + "'64'"),
    ("None for a budget", None, FINITE + "None"),
    ("a bool for a budget", True, FINITE + "True"),
    ("a complex budget", 64j, FINITE + "64j"),
    ("a list for a budget", [64], FINITE + r"\[64\]"),
    ("a budget of nothing", 0, "budget of (at least )?\\d+"),
    ("a negative budget", -5, "budget of (at least )?\\d+"),
    ("a budget that pays for too little", 3, "budget of (at least )?\\d+"),
]:
    refused(what, ValueError, message, lambda b, e, n=budget: e(Game(), n, draws()), SAMPLERS)
    refused(
        what,
        ValueError,
        message,
        lambda b, m, n=budget: run(m, toy_cnn("fc"), "features", b.x, 0, budget=n),
        ["owen_cam"],
    )
answered(
    "a budget that is no whole number",
    lambda b, e: e(Game(), 20.9, draws()).values,
    lambda b, e: e(Game(), 20, draws()).values,
    SAMPLERS,
)
answered(
    "a budget of numpy",
    lambda b, e: e(Game(), np.int64(20), draws()).values,
    lambda b, e: e(Game(), 20, draws()).values,
    SAMPLERS,
)

HEAT = torch.linspace(0, 1, 288, dtype=torch.float64).view(2, 12, 12)


def with_heat(metric, **options):
    return lambda b: metric(b.net, b.x, 1, b.watch(HEAT.clone()), **options)


def with_method(metric, method="grad_cam", **options):
    return lambda b: metric(
        b.net, "features", b.x, 1, METHODS[method] if isinstance(method, str) else method, **options
    )


DRAWING = {
    **{e.__name__: lambda b, g, e=e: e(Game(), 20, g) for e in SAMPLERS},
    "owen": lambda b, g: owen(game(b), 64, g),
    **{m: lambda b, g, m=m: run(m, b.net, "features", b.x, 1, generator=g) for m in ("shap_cam", "lime")},
    "owen_cam": lambda b, g: run("owen_cam", toy_cnn("fc"), "features", b.x, 1, budget=200, generator=g),
    "road_morf": lambda b, g: with_heat(metrics.road_morf, generator=g)(b),
    "sensitivity_max": lambda b, g: with_method(metrics.sensitivity_max, generator=g)(b),
    "cascading_randomisation": lambda b, g: with_method(metrics.cascading_randomisation, generator=g)(b),
    "random_map": lambda b, g: metrics.random_map(b.net, "features", b.x, 1, generator=g),
}
for what, generator, message in [
    ("a seed for a generator", 7, "not int"),
    ("numpy's generator", np.random.default_rng(0), r"not Generator: torch.Generator\(\).manual_seed\(0\)"),
    ("a text for a generator", "cpu", "not str"),
]:
    message = "generator must be a torch.Generator or None, " + message
    refused(what, TypeError, message, lambda b, d, g=generator: DRAWING[d](b, g), DRAWING)


def values(result):
    """A tensor of what was drawn for: an `Estimate`'s values, or the maps or scores themselves."""
    return getattr(result, "values", result) if not isinstance(result, torch.Tensor) else result


answered(
    "None for a generator",
    lambda b, d: values(DRAWING[d](b, None))[:1],
    lambda b, d: values(DRAWING[d](b, draws()))[:1],  # each image of a batch draws like the first
    [d for d in DRAWING if d != "random_map"],
)

PLAYERS = "a game's n_players must be a whole number of at least 1, not "
VALUE = r"a game's value must be a real tensor \(\d+,\), a payoff for each mask, not "
PAYOFFS = "a game's payoffs contain NaN or infinite values"
for what, make, message in [
    ("a game without players", lambda: Game(0), "(at least 1, not 0|players)"),
    ("a game of negative players", lambda: Game(-2), PLAYERS + "-2"),
    ("a game of a broken number of players", lambda: Game(4, len) and _players(2.5), PLAYERS + "2.5"),
    ("a game that does not say its players", lambda: object(), PLAYERS + "None"),
    ("payoffs in a column", lambda: Game(4, lambda m: m.double()[:, :1]), VALUE + r"torch.float64 \(\d+, 1\)"),
    ("one payoff for all masks", lambda: Game(4, lambda m: m.double().sum()), VALUE + r"torch.float64 \(\)"),
    ("payoffs in a list", lambda: Game(4, lambda m: m.sum(1).tolist()), VALUE + "list"),
    ("payoffs in an array", lambda: Game(4, lambda m: m.sum(1).numpy()), VALUE + "ndarray"),
    ("complex payoffs", lambda: Game(4, lambda m: m.sum(1) + 0j), VALUE + "torch.complex64"),
    ("payoffs of NaN", lambda: Game(4, lambda m: m.sum(1) * torch.nan), PAYOFFS),
    ("payoffs that are infinite", lambda: Game(4, lambda m: m.sum(1) / 0), PAYOFFS),
]:
    refused(what, ValueError, message, lambda b, e, make=make: e(make(), 40, draws()), EVERY)


def _players(n):
    found = Game()
    found.n_players = n
    return found


refused(
    "too many players for enumeration",
    ValueError,
    "at most 20 players, not 21. Take an estimator",
    lambda b: exact(Game(21)),
)
refused(
    "KernelSHAP with one player",
    ValueError,
    "KernelSHAP needs at least 2 players",
    lambda b: kernel_shap(Game(1), 40, draws()),
)
answered(
    "a game of one player",
    lambda b, e: e(Game(1), 40, draws()).values,
    lambda b, e: torch.tensor([1.0], dtype=torch.float64),
    [EVERY[i] for i in (0, 1, 3)],
)
answered(
    "payoffs of whole numbers",
    lambda b, e: (
        e(Game(4, lambda m: (m.double() @ torch.arange(1.0, 5, dtype=torch.float64)).long()), 40, draws()).values
    ),
    lambda b, e: torch.arange(1.0, 5, dtype=torch.float64),
    EVERY,
)

# --- options of the methods

COUNT = "must be a whole number of at least 1, not "
for what, size, message in [
    ("a batch of nothing", 0, "0"),
    ("a negative batch", -8, "-8"),
    ("half a batch", 1.5, "1.5"),
    ("NaN for a batch", float("nan"), "nan"),
    ("None for a batch", None, "None"),
    ("a text for a batch", "8", "'8'"),
]:
    batched = ["score_cam", "ablation_cam", "lime"]
    message = f"batch_size {COUNT}{message}"
    refused(what, ValueError, message, lambda b, m, s=size: run(m, b.net, "features", b.x, 0, batch_size=s), batched)
    with_batches = [metrics.average_drop, metrics.deletion, metrics.road_morf]
    refused(what, ValueError, message, lambda b, f, s=size: with_heat(f, batch_size=s)(b), with_batches)
    refused(what, ValueError, message, lambda b, f, s=size: with_method(f, batch_size=s)(b), [metrics.sensitivity_max])


def option(method, **options):
    return lambda b: run(method, b.net, "features", b.x, 0, **options)


for what, call, message in [
    (
        "no samples for a position",
        option("shap_cam", samples_per_position=0),
        "samples_per_position must be a whole number of at least 1, not 0",
    ),
    (
        "half a sample for a position",
        option("shap_cam", samples_per_position=1.5),
        "samples_per_position must be a whole number",
    ),
    (
        "samples in a text",
        option("shap_cam", samples_per_position="9"),
        "samples_per_position must be a whole number of at least 1, not '9'",
    ),
    ("a single sample for LIME", option("lime", n_samples=1), "n_samples must be a whole number of at least 2, not 1"),
    ("half a sample for LIME", option("lime", n_samples=9.5), "n_samples must be a whole number"),
    ("one superpixel", option("lime", n_segments=1), "n_segments must be a whole number from 2 to 144, not 1"),
    (
        "more superpixels than pixels",
        option("lime", n_segments=145),
        "n_segments must be a whole number from 2 to 144, not 145",
    ),
    (
        "segments of another size",
        option("lime", segments=torch.zeros(6, 6, dtype=torch.long)),
        r"segments must be integers of shape \(2, 12, 12\)",
    ),
    ("segments of floats", option("lime", segments=torch.zeros(12, 12)), "segments must be integers"),
    ("segments that are no tensor", option("lime", segments="slic"), "segments must be integers"),
    ("a kernel without width", option("lime", kernel_width=0), "kernel_width must be positive and finite, not 0"),
    ("a kernel of NaN", option("lime", kernel_width=float("nan")), "kernel_width must be positive and finite, not nan"),
    ("a kernel that vanishes", option("lime", kernel_width=1e-200), "kernel_width"),
    ("an infinite penalty", option("lime", alpha=float("inf")), "alpha must be positive and finite, not inf"),
    ("a penalty in a text", option("lime", alpha="1"), "alpha must be positive and finite, not '1'"),
    (
        "an unknown baseline for LIME",
        option("lime", baseline="blue"),
        'baseline must be "mean", "grey" or a tensor, not',
    ),
    (
        "an array for LIME's baseline",
        option("lime", baseline=np.zeros(3)),
        'baseline must be "mean", "grey" or a tensor',
    ),
    ("an unknown payoff for LIME", option("lime", payoff="score"), CHOICE),
    ("LIME's grey without a spec", lambda b: run("lime", toy_cnn(), None, b.x, 0, baseline="grey"), "set model.spec"),
]:
    refused(what, ValueError, message, call)
refused(
    "an option that no method has", TypeError, "unexpected keyword argument 'bugdet'", option("owen_cam", bugdet=64)
)

# --- heat maps and metrics

HEATS = r"heat must be a floating point tensor \(N,H,W\), not {}; postprocess.heatmap"
MASKING = [metrics.average_drop, metrics.insertion, metrics.road_lerf]
for what, heat, message in [
    ("a heat map that is an array", lambda h: h.numpy(), HEATS.format("ndarray")),
    ("None for a heat map", lambda h: None, HEATS.format("NoneType")),
    ("a heat map without its batch", lambda h: h[0], HEATS.format(r"torch.float64 \(12, 12\)")),
    ("a heat map of bools", lambda h: h > 0.5, HEATS.format("torch.bool.*")),
    ("a heat map of whole numbers", lambda h: h.long(), HEATS.format("torch.int64.*")),
    (
        "a heat map of another size",
        lambda h: h[:, :6, :6],
        r"heat \(2, 6, 6\) does not fit the images .*postprocess.heatmap",
    ),
    ("too few heat maps", lambda h: h[:1], r"heat \(1, 12, 12\) does not fit the images"),
    ("a signed map for a heat map", lambda h: h - 0.5, r"heat must lie in \[0,1\], without NaN; postprocess.heatmap"),
    ("a heat map above one", lambda h: 255 * h, r"heat must lie in \[0,1\]"),
    ("NaN in a heat map", lambda h: h.where(h < 0.5, torch.nan), r"heat must lie in \[0,1\], without NaN"),
]:
    refused(what, ValueError, message, lambda b, f, h=heat: f(b.net, b.x, 1, h(HEAT)), MASKING)
    if "size" not in what and "too few" not in what:
        refused(what, ValueError, message, lambda b, f, h=heat: f(h(HEAT)), [metrics.complexity])

STEPS = "steps must be a whole number from 1 to 144, not "
NOTHING = torch.zeros(2, 12, 12, dtype=torch.bool)
MAPS = torch.linspace(-1, 1, 288).view(2, 12, 12)
CELLS = (
    torch.eye(2, dtype=torch.bool).repeat_interleave(6, 0).repeat_interleave(72, 1).view(12, 2, 72)[::6].view(2, 12, 12)
)
FRACTIONS = r"fractions must lie in \(0,1\) and leave some of the 144 pixels, not "
for what, call, message in [
    ("no steps", with_heat(metrics.deletion, steps=0), STEPS + "0"),
    ("more steps than pixels", with_heat(metrics.insertion, steps=145), STEPS + "145"),
    ("half a step", with_heat(metrics.deletion, steps=1.5), STEPS + "1.5"),
    ("steps of NaN", with_heat(metrics.deletion, steps=float("nan")), STEPS + "nan"),
    (
        "an unknown replacement",
        with_heat(metrics.deletion, baseline="grey"),
        "must be one of black, zero, blur, not 'grey'",
    ),
    (
        "None for a replacement",
        with_heat(metrics.insertion, baseline=None),
        "must be one of black, zero, blur, not None",
    ),
    (
        "an array for a replacement",
        with_heat(metrics.deletion, baseline=np.zeros(3)),
        "must be one of black, zero, blur, not array",
    ),
    (
        "a replacement of another shape",
        with_heat(metrics.deletion, baseline=torch.zeros(5)),
        r"baseline \(5,\) does not broadcast to the images",
    ),
    (
        "a blur larger than the image",
        lambda b: replacement(b.net, b.x[:, :, :4], "blur"),
        "the blur needs images of more than 5 pixels",
    ),
    ("no fractions", with_heat(metrics.road_morf, fractions=()), FRACTIONS),
    ("a fraction of everything", with_heat(metrics.road_morf, fractions=(0.5, 1.0)), FRACTIONS),
    ("a fraction of nothing", with_heat(metrics.road_morf, fractions=(0.0,)), FRACTIONS),
    ("a fraction of NaN", with_heat(metrics.road_lerf, fractions=(float("nan"),)), FRACTIONS),
    ("fractions in a text", with_heat(metrics.road_lerf, fractions="0.5"), FRACTIONS + "'0.5'"),
    ("a single number for fractions", with_heat(metrics.road_lerf, fractions=0.5), FRACTIONS + "0.5"),
    ("negative noise", with_heat(metrics.road_morf, noise=-1), "noise must be a standard deviation, 0 or more, not -1"),
    ("noise of NaN", with_heat(metrics.road_morf, noise=float("nan")), "noise must be a standard deviation"),
    ("all pixels removed", lambda b: impute(b.x, ~NOTHING), "nothing is left to impute from"),
    ("removed pixels that are no bools", lambda b: impute(b.x, HEAT), "removed must be bool .*not torch.float64"),
    ("no radius", with_method(metrics.sensitivity_max, radius=0), "radius must be positive and finite, not 0"),
    (
        "a radius of NaN",
        with_method(metrics.sensitivity_max, radius=float("nan")),
        "radius must be positive and finite, not nan",
    ),
    (
        "an infinite radius",
        with_method(metrics.sensitivity_max, radius=float("inf")),
        "radius must be positive and finite, not inf",
    ),
    ("no perturbations", with_method(metrics.sensitivity_max, n_perturbations=0), "n_perturbations " + COUNT + "0"),
    (
        "a stage that is not there",
        with_method(metrics.cascading_randomisation, stages=["nowhere"]),
        "no layer 'nowhere'",
    ),
    ("no stages", with_method(metrics.cascading_randomisation, stages=[]), "nothing to randomise: name some stages"),
    (
        "a Gaussian without width",
        lambda b: metrics.centre_gaussian(b.net, None, b.x, 0, sigma=0),
        "sigma must be positive and finite, not 0",
    ),
    (
        "a region that is no bool",
        lambda b: metrics.pointing_game(HEAT, HEAT),
        "region must be a bool tensor .*not torch.float64",
    ),
    (
        "a region of another size",
        lambda b: metrics.energy_pointing_game(HEAT, NOTHING[:, :6]),
        "region must be a bool tensor .*like heat",
    ),
    (
        "a region that is an array",
        lambda b: metrics.pointing_game(HEAT, NOTHING.numpy()),
        "region must be a bool tensor .*not ndarray",
    ),
    (
        "a negative tolerance",
        lambda b: metrics.pointing_game(HEAT, NOTHING, tolerance=-1),
        "tolerance must be a number of pixels, 0 or more, not -1",
    ),
    (
        "a tolerance of NaN",
        lambda b: metrics.pointing_game(HEAT, NOTHING, tolerance=float("nan")),
        "tolerance must be a number of pixels",
    ),
    (
        "cells that are an array",
        lambda b: metrics.grid_pointing_game(MAPS, CELLS.numpy(), [0, 1]),
        "cells must be a bool tensor .*not ndarray",
    ),
    (
        "cells of another size",
        lambda b: metrics.grid_pointing_game(MAPS, CELLS[:, :6], [0, 1]),
        "cells must be a bool tensor",
    ),
    (
        "a cell that is not there",
        lambda b: metrics.grid_pointing_game(MAPS, CELLS, [0, 2]),
        "one of the cells 0 … 1 for each of the 2 maps",
    ),
    ("None for the cells' index", lambda b: metrics.grid_pointing_game(MAPS, CELLS, None), "one of the cells 0 … 1"),
    ("NaN in a map for cells", lambda b: metrics.grid_pointing_game(MAPS / 0, CELLS, [0, 1]), "maps must be a finite"),
    (
        "terms of ADCC of different shapes",
        lambda b: metrics.adcc(torch.rand(2, generator=draws()), torch.ones(3), torch.ones(2)),
        r"have one shape, not \(3,\), \(2,\), \(2,\)",
    ),
    (
        "a term of ADCC that is a percentage",
        lambda b: metrics.adcc(torch.tensor([37.0]), torch.ones(1), torch.ones(1)),
        r"must lie in \[0,1\]",
    ),
    (
        "a term of ADCC that is NaN",
        lambda b: metrics.adcc(torch.tensor([torch.nan]), torch.ones(1), torch.ones(1)),
        r"must lie in \[0,1\]",
    ),
    (
        "Shapley values of different shapes",
        lambda b: metrics.shapley_error(MAPS, MAPS[:, :6]),
        "values and truth must be finite",
    ),
    (
        "Shapley values that are arrays",
        lambda b: metrics.efficiency_gap(MAPS.numpy(), MAPS),
        "values and truth must be real tensors, not ndarray",
    ),
    ("Shapley values of NaN", lambda b: metrics.shapley_error(MAPS, MAPS / 0), "values and truth must be finite"),
    (
        "maps of different shapes to correlate",
        lambda b: metrics.pearson(MAPS, MAPS[:, :6]),
        "same shape can be correlated",
    ),
    ("no maps to correlate", lambda b: metrics.spearman(MAPS[:0], MAPS[:0]), "same shape can be correlated"),
    ("a map of NaN to correlate", lambda b: metrics.spearman(MAPS, MAPS / 0), "correlated contains NaN"),
    (
        "a method that returns more than maps",
        with_method(metrics.coherency, lambda *a: (a[2][:, 0], [])),
        "the method must return maps .*nothing else, not tuple",
    ),
    (
        "a method that returns one map for all",
        with_method(metrics.coherency, lambda *a: a[2][:1, 0]),
        r"maps \(2,h,w\), one for each image.* not \(1, 12, 12\)",
    ),
    (
        "a method that returns activations",
        with_method(metrics.cascading_randomisation, lambda *a: a[2]),
        r"not \(2, 3, 12, 12\)",
    ),
    (
        "a method that returns NaN",
        with_method(metrics.sensitivity_max, lambda *a: a[2][:, 0] / 0),
        "the method's map contains NaN",
    ),
]:
    refused(what, ValueError, message, call)
refused(
    "a method's name for a method",
    TypeError,
    "a function such as METHODS.'grad_cam'., not 'lime'",
    lambda b: metrics.coherency(b.net, "features", b.x, 1, "lime"),
)
answered(
    "one stage in a text",
    with_method(metrics.cascading_randomisation, stages="classifier"),
    with_method(metrics.cascading_randomisation, stages=["classifier"]),
)
NIL = torch.zeros(2, dtype=torch.float64)
answered(
    "an empty region",
    lambda b, f: f(HEAT, NOTHING),
    lambda b, f: NIL,
    [metrics.pointing_game, metrics.energy_pointing_game],
)
answered(
    "an empty heat map",
    lambda b, f: f(0 * HEAT, ~NOTHING),
    lambda b, f: NIL,
    [metrics.pointing_game, metrics.energy_pointing_game],
)
answered(
    "a constant map to correlate",
    lambda b, f: f(MAPS, torch.ones_like(MAPS)),
    lambda b, f: NIL,
    [metrics.pearson, metrics.spearman],
)

# --- what is done to maps, and shown

TENSOR = r"maps must be a floating point tensor \(N,h,w\), not {}; a single map is map\[None\]"
for what, maps, message in [
    ("a map without its batch", MAPS[0], TENSOR.format(r"torch.float32 \(12, 12\)")),
    ("maps with channels", MAPS[None], TENSOR.format(r"torch.float32 \(1, 2, 12, 12\)")),
    ("maps of whole numbers", MAPS.long(), TENSOR.format("torch.int64.*")),
    ("maps in an array", MAPS.numpy(), TENSOR.format("ndarray")),
    ("maps without positions", MAPS[:, :0], TENSOR.format(r"torch.float32 \(2, 0, 12\)")),
    ("NaN in a map", MAPS.where(MAPS < 0.5, torch.nan), "NaN or infinite values cannot be shown: look at"),
    ("minus infinity in a map", MAPS.where(MAPS > -0.5, -torch.inf), "NaN or infinite values cannot be shown"),
]:
    shown = {"heatmap": lambda m: heatmap(m, 24), "upsample": lambda m: upsample(m, 24), "normalize": normalize}
    refused(what, ValueError, message, lambda b, f, m=maps, shown=shown: shown[f](m), shown)
refused(
    "a map to be rectified that is an array",
    TypeError,
    "must be Tensor, not numpy.ndarray",
    lambda b: rectify(MAPS.numpy()),
)
SIZE = "at least one pixel each way: the size must be one whole number or two, not "
for what, size, message in [
    ("a size of nothing", 0, "0"),
    ("a negative size", (4, -4), r"\(4, -4\)"),
    ("a size of half pixels", (4.5, 4), r"\(4.5, 4\)"),
    ("a size of three numbers", (1, 2, 3), r"\(1, 2, 3\)"),
    ("None for a size", None, "None"),
    ("a text for a size", "24", "'24'"),
]:
    refused(what, ValueError, SIZE + message, lambda b, f, s=size: f(MAPS, s), [heatmap, upsample])
answered("a size in a list", lambda b: heatmap(MAPS, [24, 20]), lambda b: heatmap(MAPS, (24, 20)))
answered("a size of numpy", lambda b: heatmap(MAPS, np.int64(24)), lambda b: heatmap(MAPS, 24))
answered(
    "values whose difference overflows",
    lambda b: normalize(3e38 * MAPS.view(1, 24, 12)),
    lambda b: normalize(MAPS.view(1, 24, 12)),
)
answered("a map that is constant", lambda b: heatmap(torch.full((1, 3, 3), 1e-30), 6), lambda b: torch.zeros(1, 6, 6))
answered("a map that is negative everywhere", lambda b: heatmap(-MAPS.abs() - 1, 6), lambda b: torch.zeros(2, 6, 6))
answered("a map of one position", lambda b: heatmap(torch.ones(1, 1, 1), 6), lambda b: torch.zeros(1, 6, 6))

SMALL = Image.new("RGB", (12, 12))
ONE = HEAT[0]
for what, call, message in [
    (
        "a heat map of another size than the image",
        lambda: overlay(SMALL, ONE[:6]),
        r"heat must be a tensor \(12, 12\) like the image, not \(6, 12\)",
    ),
    ("an array over an image", lambda: overlay(SMALL, ONE.numpy()), "heat must be a tensor .*not ndarray"),
    ("a signed map over an image", lambda: overlay(SMALL, ONE - 0.5), r"heat must lie in \[0,1\], without NaN"),
    (
        "NaN over an image",
        lambda: overlay(SMALL, ONE * torch.nan, signed=True),
        r"heat must lie in \[-1,1\], without NaN",
    ),
    ("more than opaque", lambda: overlay(SMALL, ONE, alpha=1.5), r"alpha, 1.5, in \[0,1\]"),
    ("no maps to plot", lambda: plot_maps(SMALL, {}), "there is no map to plot"),
    ("maps to plot without names", lambda: plot_maps(SMALL, [ONE]), "give at least one as {name: map}"),
    (
        "a batch of maps to plot",
        lambda: plot_maps(SMALL, {"a": HEAT}),
        r"a map must be a tensor \(h,w\), not \(2, 12, 12\): maps\[0\]",
    ),
    ("NaN to plot", lambda: plot_maps(SMALL, {"a": ONE * torch.nan}, signed=True), "cannot be shown"),
    ("no explanations to plot", lambda: plot_explanations([]), "there is no explanation to plot"),
    ("no explanations for a contact sheet", lambda: plot_contact_sheet([], []), "there is no explanation to plot"),
    ("a figure's name that is none", lambda: save_figure(None, "layers"), 'a figure is named like "04_layers"'),
    ("a number for a figure's name", lambda: save_figure(None, 4), 'a figure is named like "04_layers"'),
]:
    refused(what, ValueError, message, lambda b, call=call: call())

# --- statistics

ROW = np.arange(5.0)
for what, error, call, message in [
    (
        "an interval of one value",
        ValueError,
        lambda: mean_interval([1], np.random.default_rng(0)),
        "at least two finite values",
    ),
    (
        "an interval of NaN",
        ValueError,
        lambda: mean_interval([1, np.nan], np.random.default_rng(0)),
        "at least two finite values",
    ),
    (
        "an interval of a table",
        ValueError,
        lambda: mean_interval([[1, 2]], np.random.default_rng(0)),
        "finite values in a row",
    ),
    (
        "an interval without a generator",
        TypeError,
        lambda: mean_interval(ROW, None),
        "numpy Generator, such as np.random.default_rng",
    ),
    ("NaN among differences", ValueError, lambda: signed_rank([1, np.nan]), "without NaN: leave those pairs out"),
    ("a table of differences", ValueError, lambda: signed_rank([[1, 2]]), r"numbers in a row \(n,\), not \(1, 2\)"),
    (
        "a p-value above one",
        ValueError,
        lambda: holm(pd.Series([0.5, 1.5])),
        r"p-values must be a pandas Series in \[0,1\]",
    ),
    ("p-values of NaN", ValueError, lambda: holm(pd.Series([0.5, np.nan])), "without NaN"),
    ("p-values in a list", ValueError, lambda: holm([0.5]), "pandas Series .*not list"),
]:
    refused(what, error, message, lambda b, call=call: call())
answered("differences that are all zero", lambda b: signed_rank(np.zeros(4)), lambda b: (0.0, 1.0))
