"""Kinds of networks, layers, inputs and files of weights: every method, `explain`, `LayerGame`, `split`, `open_model`."""

import copy
import io
import pickle
import warnings

import torch
from PIL import Image
from torch import nn
from torch.nn.utils import parametrizations, prune

from cam_utils import METHODS, LayerGame, explain, load_model
from cam_utils.layers import candidate_layers, split
from cam_utils.networks import open_model
from cam_utils.tokens import in_grid
from conftest import toy_cnn
from kinds import GRADIENT, LAYERED, answered, noise, refused, run, with_spec

PHOTO = Image.new("RGB", (20, 20), (200, 50, 90))
EACH_WAY = ["cam", "grad_cam", "score_cam", "ablation_cam", "shap_cam", "owen_cam", "lime"]  # of running a network
LAYER_EACH_WAY = EACH_WAY[:-1]


class Own(nn.Module):
    """A toy whose forward is `own(self, x)`."""

    def __init__(self, own):
        super().__init__()
        toy = toy_cnn()
        self.features, self.classifier = toy.features, toy.classifier
        with torch.random.fork_rng(devices=[]):
            self.extra, self.norm = nn.Conv2d(4, 4, 1).double(), nn.ReLU()
        self.own = own
        self.eval()

    def forward(self, x):
        return self.own(self, x)


def plain(self, x):
    return self.classifier(self.features(x))


def on(own, layer="features"):
    """Each method at a layer of a toy with its own forward."""
    return lambda bench, method: run(method, bench.watch(Own(own)), layer, bench.x, 0)


def at(layer):
    """Each method at a layer of the toy; layer: a name, or a function of the toy."""
    return lambda b, method: run(method, b.net, layer(b.net) if callable(layer) else layer, b.x, 0)


# --- what is no network, or none whose layers can be reached

for what, thing, message in [
    ("None", None, "not a NoneType"),
    ("a class", nn.Linear, "not the class Linear"),
    ("a function", torch.relu, "not a builtin"),
    ("a state dict", dict(toy_cnn().state_dict()), "not a dict"),
    ("a name", "resnet18", "not a str: load_model"),
]:
    message = f"the model must be a torch.nn.Module, {message}"
    refused(
        f"{what} for a network", TypeError, message, lambda b, m, it=thing: run(m, it, "features", b.x, 0), EACH_WAY
    )
EVERY_WAY_IN = [
    lambda model, x: explain(model, PHOTO),
    lambda model, x: LayerGame(model, "features", x[:1], 0),
    lambda model, x: split(model, "features"),
    lambda model, x: candidate_layers(model, x),
]
for number, enter in enumerate(EVERY_WAY_IN):
    kind = "no network, outside of the methods"
    refused(kind, TypeError, "must be a torch.nn.Module", lambda b, _, enter=enter: enter(None, b.x), [number])


def scripted(bench, make=torch.jit.script):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(bench.net)


def traced(bench):
    return scripted(bench, lambda net: torch.jit.trace(net, bench.x))


JIT = "torch.jit has compiled has no layers to be reached: give the network that it was made from"
refused("a scripted network", ValueError, JIT, lambda b, m: run(m, scripted(b), "features", b.x, 0), LAYERED)
refused("a traced network", ValueError, JIT, lambda b, m: run(m, traced(b), "features", b.x, 0), LAYERED)
answered(
    "a scripted network for a method that needs no layer",
    lambda b: run("lime", scripted(b), None, b.x, 0),
    lambda b: run("lime", toy_cnn(), None, b.x, 0),
)

# --- what a network may put out

NO_LOGITS = r"must put out logits \(N,K\), not "
for what, change, message in [
    ("a tuple", lambda z: (z, z), "tuple: wrap it in a module"),
    ("a dict", lambda z: {"logits": z}, "dict: wrap it in a module whose forward returns the logits"),
    ("a list", lambda z: [z], "list: wrap"),
    ("None", lambda z: None, "NoneType: wrap"),
    ("logits of three dimensions", lambda z: z[:, None], r"torch.float64 \(\d+, 1, 3\)"),
    ("one dimension", lambda z: z[:, 0], r"torch.float64 \(\d+,\)"),
    ("maps, as in segmentation", lambda z: z[:, :, None, None], r"torch.float64 \(\d+, 3, 1, 1\)"),
    ("class ids", lambda z: z.argmax(1, keepdim=True), "torch.int64"),
    ("complex numbers", lambda z: z + 0j, "torch.complex128"),
]:
    own = lambda self, x, change=change: change(plain(self, x))  # noqa: E731
    refused(f"a network that puts out {what}", ValueError, NO_LOGITS + message, on(own), EACH_WAY)
NOT_FINITE = "output contains NaN or infinite values: look at the network's weights"
refused("a network that puts out NaN", ValueError, NOT_FINITE, on(lambda s, x: plain(s, x) * torch.nan), EACH_WAY)
refused("a network that puts out infinity", ValueError, NOT_FINITE, on(lambda s, x: plain(s, x) / 0), EACH_WAY)
refused(
    "one row for the whole batch",
    ValueError,
    "1 rows of logits for 2 images",
    on(lambda s, x: plain(s, x).mean(0)[None]),
    GRADIENT,
)


class OwnError(Exception):
    """Of a user's forward."""


def fails(error):
    def own(self, x):
        raise error

    return own


SAID = "fails on an input torch.float64 .*: too dark. Channels, size"
refused("a forward that raises RuntimeError", ValueError, SAID, on(fails(RuntimeError("too dark"))), EACH_WAY)
refused("a forward that raises an error of its own", OwnError, "too dark", on(fails(OwnError("too dark"))), EACH_WAY)
refused(
    "a head that takes one image at a time",
    ValueError,
    "fails on an input",
    lambda b, m: run(
        m, b.watch(Own(lambda s, x: s.classifier[3](s.features(x).mean((2, 3)).reshape(1, 4)))), "features", b.x[:1], 0
    ),
    ["score_cam", "ablation_cam", "shap_cam", "owen_cam", "lime"],
)
answered(
    "a network of one class",
    lambda b, m: run(m, Own(lambda s, x: plain(s, x)[:, :1]), "features", b.x, 0, payoff="logit"),
    lambda b, m: run(m, Own(plain), "features", b.x, 0, payoff="logit"),
    ["owen_cam", "lime"],
)
refused(
    "log-odds of a network of one class",
    ValueError,
    "single output.*let it return the two logits",
    lambda b, m: run(m, b.watch(Own(lambda s, x: plain(s, x)[:, :1])), "features", b.x, 0, payoff="log_odds"),
    ["shap_cam"],
)

# --- layers

NONE = r"has no layer {}. Try one of: features"
for what, layer, message in [
    ("an unknown layer", "nowhere", "Sequential has no layer 'nowhere'. Try one of: features, classifier"),
    ("a layer that nearly is one", "feature.4", "no layer 'feature.4'. Try one of: features.4"),
    ("an empty name of a layer", "", "no layer ''. Try one of: features"),
    ("None for a layer", None, "no layer None. Try one of: features"),
    ("a number for a layer", 3, "no layer 3. Try one of: "),
    ("a list for a layer", ["features"], "no layer .*features"),
    (
        "a layer of another network",
        lambda net: toy_cnn().features,
        "not part of the model Sequential: give one of this",
    ),
    ("a layer of a copy", lambda net: copy.deepcopy(net).features, "not part of the model"),
    (
        "a layer behind the pooling",
        "classifier.3",
        r"feature maps \(N,C,h,w\), not .*: choose a layer before the pooling",
    ),
    ("the network itself as its layer", lambda net: net, r"feature maps \(N,C,h,w\), not"),
]:
    refused(what, ValueError, message, at(layer), LAYERED)

refused(
    "a layer that is not reached", ValueError, "not reached in the forward pass: choose", on(plain, "extra"), LAYERED
)
TWICE = "reached twice in one forward pass.*choose"
refused(
    "a layer that is reached twice",
    ValueError,
    TWICE,
    on(lambda s, x: s.classifier(s.extra(s.extra(s.features(x)))), "extra"),
    LAYERED,
)


def shared_relu(self, x):
    return self.classifier(self.norm(self.extra(self.norm(self.features(x)))))


refused("a ReLU that is shared", ValueError, TWICE, on(shared_relu, "norm"), LAYERED)


class Pair(nn.Module):
    """Puts out what is no tensor."""

    def forward(self, x):
        return x, x


class Number(nn.Module):
    """Puts out maps of whole numbers."""

    def forward(self, x):
        return x.round().long()


def inserted(module, after=lambda z: z):
    """A toy with a module between features and classifier."""

    def make(bench, method):
        model = Own(lambda s, x: s.classifier(after(s.inserted(s.features(x)))))
        model.inserted = module()
        return run(method, bench.watch(model), "inserted", bench.x, 0)

    return make


MAPS = r"must put out feature maps \(N,C,h,w\), not "
refused("a layer that puts out a tuple", ValueError, MAPS + "tuple", inserted(Pair, lambda z: z[0]), LAYERED)
refused("a layer that puts out whole numbers", ValueError, MAPS, inserted(Number, lambda z: z.double()), LAYERED)
refused(
    "a layer that puts out tokens",
    ValueError,
    "tokens into a grid by cam_utils.tokens",
    inserted(lambda: nn.Flatten(2), lambda z: z.unflatten(2, (6, 6))),
    LAYERED,
)

CUT_OFF = "does not depend on the layer through differentiable operations: choose"
for what, own in [
    (
        "a layer whose output is dropped",
        lambda s, x: s.classifier(s.features(x) + 0 * x.mean()) if s.extra(s.features(x)) is not None else x,
    ),
    ("a layer whose output is detached", lambda s, x: s.classifier(s.extra(s.features(x)).detach())),
    ("a layer behind which everything is rounded", lambda s, x: s.classifier(s.extra(s.features(x))).round().detach()),
]:
    refused(what, ValueError, CUT_OFF, on(own, "extra"), [*GRADIENT, "owen_cam"])


def without_gradient(self, x):
    activation = self.extra(self.features(x))
    with torch.no_grad():
        return self.classifier(activation)


refused("a head under no_grad", ValueError, CUT_OFF, on(without_gradient, "extra"), GRADIENT)
ROOT = "gradient of the output by the layer contains NaN or infinite"
refused(
    "a root of zero behind the layer",
    ValueError,
    ROOT,
    on(lambda s, x: s.classifier((0 * s.features(x)).sqrt())),
    GRADIENT,
)


def spoiled(self, x):
    y = self.features(x).sigmoid()
    y *= 2
    return self.classifier(y)


refused(
    "an operation in place that spoils the gradient",
    ValueError,
    "fails on an input.*inplace operation",
    on(spoiled),
    GRADIENT,
)
HUGE = "layer's activation contains NaN or infinite"
refused(
    "an activation that is infinite",
    ValueError,
    HUGE,
    on(lambda s, x: s.classifier(s.extra(s.features(x) / 0).clamp(-1, 1).nan_to_num()), "extra"),
    LAYERED,
)

# --- unusual networks: the maps are those of the plain one


def same(kind, make, layer="features", over=tuple(METHODS)):
    """The methods at `layer` of make(toy) give the maps of the toy."""
    answered(
        kind,
        lambda b, m: run(m, b.watch(with_spec(make(toy_cnn()))), layer, b.x, 1),
        lambda b, m: run(m, b.net, "features", b.x, 1),
        over,
    )


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, scale=1):
        if x.shape[0] and bool(x.abs().max() >= 0):  # cannot be traced
            return self.net(x) * scale


def frozen(net):
    return net.requires_grad_(False)


def twice_named(net):
    net.alias = net.features
    net.forward = lambda x: net.classifier(net.features(x))
    return net


def weight_normed(net):
    parametrizations.weight_norm(net.classifier[3])
    return net


def pruned(net):
    prune.identity(net.features[0], "weight")
    return net


def looked_at(net):
    net.features.register_forward_hook(lambda module, inputs, output: None)
    net.register_forward_pre_hook(lambda module, inputs: None)
    return net


def compiled(net):
    return torch.compile(net, backend="eager")


class Fixed(nn.Module):
    """The toy as a network without parameters."""

    def __init__(self, net):
        super().__init__()
        self.features, self.classifier = net.features, net.classifier
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())

    def forward(self, x):
        return self.classifier(self.features(x))


same("a network in training mode", lambda net: net.train())
same("a network of which one part is in training mode", lambda net: (net.classifier.train(), net)[1])
same("a frozen network", frozen)
UNCUT = [m for m in METHODS if m != "owen_cam"]  # which chooses its estimator by the head, if it can be cut off
same("nn.DataParallel", lambda net: nn.DataParallel(with_spec(net)), over=UNCUT)
same("nn.DataParallel by its own names", nn.DataParallel, "module.features", UNCUT)
same("a network inside another that cannot be traced", Wrapped, "net.features", UNCUT)
same("a module of two names", twice_named, "alias", UNCUT)
same("a weight that is computed", weight_normed)
same("a weight that is pruned", pruned)
same("hooks that only look", looked_at)
same("a network without parameters", Fixed)
same("channels last in memory", lambda net: net.to(memory_format=torch.channels_last))
same("torch.compile", compiled, over=["grad_cam"])
same("torch.compile by its own names", compiled, "_orig_mod.features", ["grad_cam"])
answered(
    "a layer given as a module",
    lambda b, m: run(m, b.net, b.net.features, b.x, 1),
    lambda b, m: run(m, b.net, "features", b.x, 1),
    LAYERED,
)
answered(
    "explain, of a network without parameters",
    lambda b: explain(with_spec(Fixed(toy_cnn()).float()), PHOTO, 0, "grad_cam").map,
    lambda b: explain(with_spec(toy_cnn().float()), PHOTO, 0, "grad_cam").map,
)
answered(
    "explain, of nn.DataParallel",
    lambda b: explain(nn.DataParallel(b.net), PHOTO, 0, "grad_cam").map,
    lambda b: explain(b.net, PHOTO, 0, "grad_cam").map,
)
answered(
    "more positions than the integral is made for",
    lambda b: METHODS["owen_cam"](b.net, "features", noise(1, 3, 80, 80), 0).shape == (1, 40, 40),
    lambda b: True,
)
answered(
    "a single position",
    lambda b, m: run(m, b.net, "features", b.x[:, :, :2, :2], 0, payoff="logit"),
    lambda b, m: torch.zeros(2, 1, 1, dtype=torch.float64),  # the baseline is its own mean
    ["shap_cam", "owen_cam"],
)

# --- the network's input

FLOATING = r"x must be a floating point tensor \(N,3,H,W\), not {}; cam_utils.preprocess makes one"
for what, change, message in [
    ("an array as input", lambda x: x.numpy(), FLOATING.format("ndarray")),
    ("a PIL image as input", lambda x: PHOTO, FLOATING.format("Image")),
    ("a list as input", lambda x: x.tolist(), FLOATING.format("list")),
    ("None as input", lambda x: None, FLOATING.format("NoneType")),
    ("a single image without its batch", lambda x: x[0], FLOATING.format(r"torch.float64 \(3, 12, 12\)")),
    ("a video", lambda x: x[None], FLOATING.format(r"torch.float64 \(1, 2, 3, 12, 12\)")),
    ("an empty batch", lambda x: x[:0], FLOATING.format(r"torch.float64 \(0, 3, 12, 12\)")),
    ("images without rows", lambda x: x[:, :, :0], FLOATING.format(r"torch.float64 \(2, 3, 0, 12\)")),
    ("whole numbers as input", lambda x: x.long(), FLOATING.format("torch.int64.*")),
    ("bytes as input", lambda x: x.to(torch.uint8), FLOATING.format("torch.uint8.*")),
    ("bools as input", lambda x: x > 0, FLOATING.format("torch.bool.*")),
    ("complex numbers as input", lambda x: x + 0j, FLOATING.format("torch.complex128.*")),
    (
        "a sparse input",
        lambda x: x.to_sparse(),
        r"dense tensor with values, not of layout torch.sparse_coo: x.to_dense\(\)",
    ),
    (
        "an input on the device meta",
        lambda x: x.to("meta"),
        "dense tensor with values, not without values, on the device meta",
    ),
    ("NaN in the input", lambda x: x.where(x < 1, torch.nan), "x contains NaN or infinite values: look at the image"),
    ("infinity in the input", lambda x: x.where(x < 1, torch.inf), "x contains NaN or infinite values"),
    ("another precision than the network's", lambda x: x.float(), "fails on an input torch.float32.*precision"),
    ("half precision", lambda x: x.half(), "fails on an input torch.float16.*precision"),
    ("one channel", lambda x: x[:, :1], r"fails on an input torch.float64 \(\d+, 1, 12, 12\).*Channels"),
    ("four channels", lambda x: x.repeat(1, 2, 1, 1)[:, :4], "fails on an input .*4 channels"),
    ("an image smaller than the network's strides", lambda x: x[:, :, :1], "fails on an input"),
]:
    over = [m for m in METHODS if (what, m) != ("an image smaller than the network's strides", "lime")]
    refused(what, ValueError, message, lambda b, m, change=change: run(m, b.net, "features", change(b.x), 0), over)
refused(
    "an image of another size than a fully connected head's",
    ValueError,
    r"fails on an input torch.float64 .*shapes cannot be multiplied.*[sS]ize",
    lambda b, m: run(m, b.watch(toy_cnn("fc")), "features", b.x[:, :, :10], 0),
    EACH_WAY,
)
refused(
    "a network on the device meta",
    ValueError,
    "fails on an input .*meta",
    lambda b, m: run(m, toy_cnn().to("meta"), "features", b.x, 0),
    ["grad_cam", "lime"],
)
refused(
    "values that overflow in the network",
    ValueError,
    "contains NaN or infinite",
    lambda b, m: run(m, b.net, "features", b.x * 1e308, 0),
    EACH_WAY,
)


def inference(x):
    with torch.inference_mode():
        return x.clone()


for what, change, plainly in [
    ("an input that requires a gradient", lambda x: x.clone().requires_grad_(True), None),
    ("a parameter as input", lambda x: nn.Parameter(x.clone()), None),
    ("an input with a history", lambda x: x.clone().requires_grad_(True) * 1, None),
    ("an input made in inference mode", inference, None),
    ("an input of channels last", lambda x: x.contiguous(memory_format=torch.channels_last), None),
    ("an input that is not contiguous", lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), None),
    ("an image repeated without a copy", lambda x: x[:1].expand(2, -1, -1, -1), lambda x: x[:1].repeat(2, 1, 1, 1)),
    ("an image that is not square", lambda x: x[:, :, :8], lambda x: x[:, :, :8].clone()),
]:
    answered(
        what,
        lambda b, m, change=change: run(
            m, b.net, "features", b.watch(change(b.x)) if change(b.x).is_leaf else change(b.x), 1
        ),
        lambda b, m, plainly=plainly: run(m, b.net, "features", plainly(b.x) if plainly else b.x, 1),
        METHODS,
    )
answered(
    "an image of one colour",
    lambda b, m: run(m, b.net, "features", torch.full_like(b.x, 0.5), 1).isfinite().all().item(),
    lambda b, m: True,
    METHODS,
)
answered(
    "an input and a network of half precision",
    lambda b, m: run(m, toy_cnn().bfloat16(), "features", b.x.bfloat16(), 1).isfinite().all().item(),
    lambda b, m: True,
    [m for m in METHODS if m != "cam"],
)

# --- explain: models and their specs


def explained(**changes):
    return lambda b: explain(b.watch(with_spec(toy_cnn(), **changes)), PHOTO, method="grad_cam")


def of_logits(change, **changes):
    return lambda b: explain(
        b.watch(with_spec(Own(lambda s, x: change(plain(s, x))), **changes)), PHOTO, method="grad_cam"
    )


def odd_spec(bench):
    net = toy_cnn()
    net.spec = {"layer": "features"}
    return explain(net, PHOTO)


refused(
    "a network without a spec",
    ValueError,
    "set model.spec = .*or call the methods",
    lambda b: explain(toy_cnn(), PHOTO),
)
refused("a spec that is a dict", ValueError, "set model.spec = cam_utils.models.ModelSpec", odd_spec)
refused("a spec whose layer is not there", ValueError, "has no layer 'last'. Try one of", explained(layer="last"))
refused("a spec with too few classes", ValueError, "3 classes, its spec names 2", explained(class_names=("a", "b")))
refused(
    "a spec of no pixels", ValueError, "input_size must be a whole number of at least 1, not 0", explained(input_size=0)
)
refused("a spec whose std is zero", ValueError, "std must be positive", explained(std=(0.0, 0.0, 0.0)))
refused("a network with a softmax", ValueError, "leave out its softmax", of_logits(lambda z: z.softmax(1)))
refused("a network of a single output", ValueError, "two logits", of_logits(lambda z: z[:, :1], class_names=("a",)))
refused(
    "an unknown method",
    ValueError,
    "unknown method 'gradcam'. Choose one of: grad_cam",
    lambda b: explain(b.net, PHOTO, method="gradcam"),
)
refused(
    "None for a method", ValueError, "unknown method None. Choose one of", lambda b: explain(b.net, PHOTO, method=None)
)
refused(
    "a list of methods",
    ValueError,
    "unknown method .'cam'.. Choose one of",
    lambda b: explain(b.net, PHOTO, method=["cam"]),
)
refused(
    "an option that the method has not",
    ValueError,
    "grad_cam has no option budget. It has: none",
    lambda b: explain(b.net, PHOTO, method="grad_cam", budget=9),
)
refused(
    "an option that nearly is one",
    ValueError,
    "no option bugdet. It has: budget",
    lambda b: explain(b.net, PHOTO, bugdet=9),
)
refused(
    "asking explain for more than a map",
    ValueError,
    "no option return_fit",
    lambda b: explain(b.net, PHOTO, method="lime", return_fit=True),
)
refused("no image for explain", TypeError, "path, a PIL image or a numpy array", lambda b: explain(b.net, None))

# --- networks by their names, and files of weights

UNKNOWN = "unknown model .*Try one of: "
refused("an unknown network", ValueError, UNKNOWN + "alexnet", lambda b: load_model("alexnett"))
refused("None for a network's name", ValueError, "unknown model None. Try one of", lambda b: load_model(None))
refused("a list for a network's name", ValueError, UNKNOWN, lambda b: load_model(["resnet18"]))
refused(
    "a network to be opened by no name", TypeError, "given by its name, not by a NoneType", lambda b: open_model(None)
)
refused(
    "a network to be opened that is open",
    TypeError,
    "not by a Sequential; one that exists needs no",
    lambda b: open_model(b.net),
)
refused(
    "an unknown network to be opened", ValueError, "unknown model 'lite0x': give one of", lambda b: open_model("lite0x")
)
refused("an unknown network of timm", ValueError, "timm has no model 'nothing9'", lambda b: open_model("timm:nothing9"))
refused(
    "code that is not there",
    ValueError,
    "cannot import 'nowhere9'.*looked for in",
    lambda b: open_model("nowhere9:make"),
)
refused(
    "a function that is not there",
    ValueError,
    "has no function 'make'. It has: ",
    lambda b: open_model("conftest:make"),
)
refused(
    "a function that makes no network",
    ValueError,
    "returns no torch.nn.Module but a str",
    lambda b: open_model("os:getcwd"),
)
refused(
    "weights for a lite network that are not there",
    FileNotFoundError,
    "no weights for tf_.*nothing",
    lambda b: load_model("tf_efficientnet_lite0", b.folder / "nothing"),
)
refused(
    "weights of torchvision that are not there",
    FileNotFoundError,
    "Place resnet18-.*in .*empty",
    lambda b: load_model("resnet18", b.folder / "empty"),
)
refused(
    "a file of weights under another name",
    ValueError,
    "a.pth is not resnet18-.*load weights of your own",
    lambda b: load_model("resnet18", b.file("a.pth", b"?")),
)
refused(
    "weights with another checksum",
    ValueError,
    "damaged or not the expected file",
    lambda b: load_model("tf_efficientnet_lite0", b.file("a.pth", b"?")),
)
refused("a number for weights", TypeError, "weights must be .*not 3", lambda b: load_model("resnet18", 3))


def opened(content: bytes | None, name="weights.pt"):
    """The toy of tests/conftest.py with the weights in a file."""
    return lambda b: open_model("conftest:toy_cnn", b.file(name, content) if content is not None else b.folder / name)


def stored(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


class Bomb:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('exploded').touch()",)


STATE = toy_cnn().state_dict()
NOT_READ = "does not hold a state dict, or more than one.*not read since it may run any code: write it by torch.save"
DAMAGED = "weights.pt does not hold a state dict: it is damaged, or no file of torch.save"
ALONE = "does not hold a state dict alone but .*save the part"
refused("a missing file of weights", FileNotFoundError, "no such file of weights: .*weights.pt", opened(None))
refused(
    "a folder for weights",
    FileNotFoundError,
    "no such file of weights",
    lambda b: open_model("conftest:toy_cnn", b.folder),
)
refused("an empty file of weights", ValueError, DAMAGED, opened(b""))
refused("a text for weights", ValueError, DAMAGED, opened(b"these are no weights"))
refused("random bytes for weights", ValueError, DAMAGED, opened(bytes(range(256)) * 9))
refused("weights that are cut off", ValueError, DAMAGED, opened(stored(STATE)[:-500]))
refused("a whole network for weights", ValueError, NOT_READ, opened(stored(toy_cnn())))
refused("a pickle that runs code", ValueError, NOT_READ, opened(stored({"a": Bomb()})))
refused("a plain pickle that runs code", ValueError, NOT_READ, opened(pickle.dumps(Bomb(), protocol=2)))
refused("a checkpoint with an optimiser", ValueError, ALONE, opened(stored({"state": dict(STATE), "epoch": 3})))
refused("one tensor for weights", ValueError, ALONE, opened(stored(torch.zeros(3))))
refused("weights by numbers", ValueError, ALONE, opened(stored({0: torch.zeros(3)})))
refused(
    "weights of another network",
    ValueError,
    "holds the weights of another network.*[Mm]issing key",
    opened(stored({"weight": torch.zeros(2)})),
)
refused(
    "weights of another width",
    ValueError,
    "another network.*size mismatch",
    opened(stored(toy_cnn(channels=5).state_dict())),
)
refused(
    "weights saved from nn.DataParallel",
    ValueError,
    "save model.module.state_dict",
    opened(stored({f"module.{k}": v for k, v in STATE.items()})),
)
refused(
    "weights that are NaN",
    ValueError,
    NOT_FINITE,
    opened(stored({k: v * torch.nan if v.is_floating_point() else v for k, v in STATE.items()})),
)
answered(
    "weights of another precision",
    lambda b: (
        open_model("conftest:toy_cnn", b.file("a.pt", stored({k: v.float() for k, v in STATE.items()})))
        .features[0]
        .bias
    ),
    lambda b: STATE["features.0.bias"].float().double().requires_grad_(False),
)

# --- tokens

refused("an unknown block for a grid", ValueError, "has no layer 'blocks.3'", lambda b: in_grid(b.net, "blocks.3"))
refused(
    "a negative number of tokens before the grid",
    ValueError,
    "prefix must be a whole number",
    lambda b: in_grid(b.net, "features", prefix=-1),
)
refused(
    "a layer without tokens for a grid",
    ValueError,
    r"must put out tokens .*not \(2, 4\)",
    lambda b: in_grid(b.net, "classifier.1")(b.x),
)
refused(
    "tokens that are no square",
    ValueError,
    r"no square grid: .*prefix=",
    lambda b: in_grid(nn.Sequential(nn.Identity()), "0")(noise(1, 5, 4)),
)
answered(
    "a block given as a module",
    lambda b: type(in_grid(b.net, b.net.features).features).__name__,
    lambda b: type(in_grid(b.net, "features").features).__name__,
)
