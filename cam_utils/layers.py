"""Reaching into a network: capture a layer's activation, or cut the network in two at that layer.

This is the only module with hooks. Whatever happens inside, the caller's model is left as it was found:
no hook, no changed mode, no changed `requires_grad`.
"""

import collections
import copy
import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .checks import blamed_on, check_finite, check_model

GRADIENT_COST = 2.5  # a forward+backward pass in units of a forward pass


def resolve_layer(model: nn.Module, layer: nn.Module | str) -> nn.Module:
    """The module that `layer` names, for instance "blocks.5". Raises ValueError with near matches or candidates.

    Inside nn.DataParallel or torch.compile, a name of the network that they wrap serves too.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in (check_model(model), layer)):
        raise ValueError(
            "what torch.jit has compiled has no layers to be reached: give the network that it was made from"
        )
    if isinstance(layer, nn.Module):
        if any(module is layer for module in model.modules()):
            return layer
        raise ValueError(
            f"the layer {type(layer).__name__} is not part of the model {type(model).__name__}: give one of this model's own"
        )
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in (layer, f"module.{layer}", f"_orig_mod.{layer}"):
        if name in names:
            return model.get_submodule(name)
    near = difflib.get_close_matches(str(layer), names, n=5) or [name for name, _ in model.named_children()]
    raise ValueError(f"{type(model).__name__} has no layer {layer!r}. Try one of: {', '.join(near)}")


def layer_name(model: nn.Module, layer: nn.Module | str) -> str:
    """By which the layer is found in a copy of the model, too. Raises ValueError as `resolve_layer`."""
    wanted = resolve_layer(model, layer)
    return next(name for name, module in model.named_modules() if module is wanted)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, fixed batch norm) inside the block; every module's own mode is restored after it."""
    training = [module for module in _modules(check_model(model)) if module.training]
    try:
        if training:  # else there is nothing to do, and eval() takes milliseconds in a large network
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _modules(model: nn.Module) -> list[nn.Module]:
    """All modules, shared ones as often as they occur: `model.modules()` without its milliseconds in a large network."""
    found = [model]
    for module in found:  # which grows
        found += [child for child in module._modules.values() if child is not None]
    return found


class Captured:
    """What `capture` saw: `activation` (N,C,h,w), once the network has run."""

    _activation: Tensor | None = None

    @property
    def activation(self) -> Tensor:
        """Raises ValueError before the layer was reached."""
        if self._activation is None:
            raise ValueError("the layer was not reached in the forward pass: choose one that the output is made from")
        return self._activation


@contextmanager
def capture(layer: nn.Module, *, gradient: bool = False) -> Iterator[Captured]:
    """Keep the output of `layer` during one forward pass of its network.

    gradient=True makes the activation a leaf that requires a gradient and switches autograd on from this layer on, so
    that the forward pass may run under `no_grad`, on a frozen model, and the backward pass costs the head alone.
    Raises ValueError if the layer is not reached, is reached twice, or does not put out feature maps (N,C,h,w).
    """
    captured, mode = Captured(), torch.is_grad_enabled()

    def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if captured._activation is not None:
            raise ValueError(
                "the layer was reached twice in one forward pass, its activation is not unique: choose one around or behind it"
            )
        captured._activation = feature_maps(output)
        if gradient:
            torch.set_grad_enabled(True)
            captured._activation = output.detach().requires_grad_(True)
            count(GRADIENT_COST * len(output))
        return captured.activation.clone()  # an in-place ReLU that follows must not overwrite what we keep

    handle = layer.register_forward_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()
        torch.set_grad_enabled(mode)
    captured.activation  # noqa: B018  raises if there is none


def activation_of(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the part of a network up to a layer makes of x, if that is finite feature maps; else ValueError."""
    with blamed_on(x):
        return check_finite(feature_maps(features(x)), "the layer's activation")


def feature_maps(output: Tensor) -> Tensor:
    """`output` itself if it is a floating point tensor (N,C,h,w), else ValueError."""
    if not isinstance(output, Tensor) or output.ndim != 4 or not output.is_floating_point():
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the layer must put out feature maps (N,C,h,w), not {found}: choose a layer before the pooling, "
            "or put a transformer's tokens into a grid by cam_utils.tokens.in_grid"
        )
    return output


def candidate_layers(model: nn.Module, x: Tensor) -> tuple[dict[str, int], Tensor]:
    """The layers worth a map, early to late: the last module at every resolution, {dotted name: side}, and the output for x.

    Modules count that put out square maps (N,C,h,h), h > 1, for a square x, and are reached once; not the inside of a block
    (no nn.Sequential) that puts out maps of another size. In a vision transformer: the embedding of its patches.
    Raises ValueError for a network without any. Cost: 1 forward pass.
    """
    found, output = _watch(model, x)
    calls = collections.Counter(name for name, _ in found)
    found = [(name, h) for name, (_, h, w) in found if name and h == w > 1]
    sides = dict(found)
    blocks = [name for name in sides if not isinstance(model.get_submodule(name), nn.Sequential)]
    inside = {name for name in sides for b in blocks if name.startswith(f"{b}.") and sides[b] != sides[name]}
    last = {side: name for name, side in found if calls[name] == 1 and name not in inside}
    if not last:
        raise ValueError(f"{type(model).__name__} has no layer with feature maps (N,C,h,w): a CAM cannot be drawn")
    order = [name for name, _ in found]
    return {name: side for side, name in sorted(last.items(), key=lambda item: order.index(item[1]))}, output


def map_sizes(model: nn.Module, x: Tensor) -> dict[str, tuple[int, int, int]]:
    """{dotted name: (C,h,w)} of the modules that put out feature maps for x, in the order they do. Cost: 1 forward pass."""
    return dict(_watch(model, x)[0])


def _watch(model: nn.Module, x: Tensor) -> tuple[list[tuple[str, tuple[int, int, int]]], Tensor]:
    """The names and sizes (C,h,w) of all feature maps in the order they come, and what the network puts out."""
    found, handles = [], []
    for name, module in check_model(model).named_modules():
        if isinstance(module, nn.Softmax | nn.Dropout):  # of an attention, whose weights look like maps
            continue

        def hook(_module: nn.Module, _inputs: tuple, output: Tensor, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                found.append((name, tuple(output.shape[1:])))

        handles.append(module.register_forward_hook(hook))
    try:
        with evaluating(model), torch.no_grad():
            return found, model(x)
    finally:
        for handle in handles:
            handle.remove()


_SPLITS: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()  # model: {layer: (its parts, features, head)}


def split(model: nn.Module, layer: nn.Module | str) -> tuple[Callable, Callable]:
    """Cut `model` at the output of `layer`: (features, head) with head(features(x)) == model(x).

    features: (N,3,H,W) -> (N,C,h,w); head: (M,C,h,w) -> (M,K). Both share the model's modules and are meant for evaluation
    mode. The cut is made by torch.fx where all data flows through the layer's output; elsewhere (a skip connection
    around the layer, a forward that cannot be traced) `head` runs the whole model and a hook puts its input in place of the
    layer's output. Cuts are remembered for as long as the model lives and keeps its modules, parameters and buffers.
    """
    layer = resolve_layer(model, layer)
    modules = _modules(model)
    own = [value for m in modules for value in (*m._parameters.values(), *m._buffers.values()) if value is not None]
    made_of = (*modules[1:], *own)
    known = _SPLITS.setdefault(model, {})
    if layer not in known or not _same(known[layer][0], made_of):  # a classifier may have been replaced since
        with evaluating(model):
            parts = _cut(model, layer)
        if parts is None:
            return _hooked(model, layer)
        known[layer] = (made_of, *parts)
    return known[layer][1:]


def folded(model: nn.Module, layer: nn.Module | str, x: Tensor) -> nn.Module:
    """A frozen copy with its batch norms folded into the convolutions before them: the same function, in less time.

    Modules keep their names; a batch norm becomes what it has behind it, timm's activation or nothing. For many passes of a
    network whose weights stay as they are. Returns `model` itself where that is not the same function: if for x (N,3,H,W), which
    stands for all images, logits or the activation of `layer` differ by more than rounding. Cost: 2 forward passes, and the copy.
    """
    twin, before = copy.deepcopy(check_model(model)).eval().requires_grad_(False), None
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Conv2d):
            before = module
        elif isinstance(module, nn.BatchNorm2d) and before is not None and before.out_channels == module.num_features:
            statistics = module.running_mean, module.running_var, module.eps, module.weight, module.bias
            before.weight, before.bias = fuse_conv_bn_weights(before.weight, before.bias, *statistics)
            twin.set_submodule(name, getattr(module, "act", nn.Identity()))
            before = None
    name, outputs = layer_name(model, layer), []
    with evaluating(model), torch.no_grad():
        for network in (model, twin):
            with capture(network.get_submodule(name)) as captured:
                logits = network(x)
            outputs.append((logits, captured.activation))
    same = all(
        a.shape == b.shape and (a - b).abs().max() <= 1e-4 * a.abs().max() for a, b in zip(*outputs, strict=True)
    )
    return twin if same else model


def _same(a: tuple, b: tuple) -> bool:
    return len(a) == len(b) and all(one is other for one, other in zip(a, b, strict=True))


class _Tracer(fx.Tracer):
    """Traces like torchvision and timm do, and notes the node that `layer` puts out.

    hooks=False passes over the hooks of containers: those that only watch, such as grad-cam's, cannot be traced.
    """

    def __init__(self, layer: nn.Module, *, hooks: bool):
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.layer, self.hooks, self.outputs = layer, hooks, []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, tuple(get_notrace_modules())) or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        output = super().call_module(module, forward if self.hooks else module.forward, args, kwargs)
        if module is self.layer:
            self.outputs.append(output)
        return output


def _cut(model: nn.Module, layer: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    for hooks in (True, False):
        tracer = _Tracer(layer, hooks=hooks)
        try:
            graph = tracer.trace(model)
            break
        except Exception:  # a user's forward may fail under tracing in any way
            continue
    else:
        return None  # then a hook serves
    # an operation whose result is not used works in place, and would be lost
    in_place = [n for n in graph.nodes if not n.users and n.op in ("call_module", "call_function", "call_method")]
    if len(tracer.outputs) != 1 or not isinstance(tracer.outputs[0], fx.Proxy) or in_place:
        return None
    return cut_graph(model, graph, [tracer.outputs[0].node])


def cut_graph(root: nn.Module, graph: fx.Graph, nodes: list[fx.Node]) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Cut a graph at `nodes`: (before, after), after(*before(x)) being the whole; one node is passed bare, not as a tuple.

    None where data flows around the nodes. `after` does not change its inputs, whatever it does in place.
    """
    parts = []
    for part in ("before", "after"):
        copy = fx.Graph(tracer_cls=fx.Tracer)
        copy.output(copy.graph_copy(graph, {}))
        by_name = {node.name: node for node in copy.nodes}
        cut = [by_name[node.name] for node in nodes]
        if part == "before":
            by_name["output"].args = (cut[0] if len(cut) == 1 else tuple(cut),)
        else:
            prefix = "activation"
            while any(name.startswith(prefix) for name in by_name):
                prefix += "_"
            with copy.inserting_before(next(iter(copy.nodes))):
                inputs = [copy.placeholder(f"{prefix}{i}") for i in range(len(cut))]
                clones = [copy.call_method("clone", (node,)) for node in inputs]
            for node, clone in zip(cut, clones, strict=True):
                node.replace_all_uses_with(clone)
        copy.eliminate_dead_code(lambda node: node.op == "output")
        if part == "after" and [node for node in copy.nodes if node.op == "placeholder"] != inputs:
            return None
        parts.append(fx.GraphModule(root, copy, class_name=part.capitalize()))
    return parts[0], parts[1]


def _hooked(model: nn.Module, layer: nn.Module) -> tuple[Callable, Callable]:
    inputs = None

    def features(x: Tensor) -> Tensor:
        nonlocal inputs
        inputs = x.detach()
        with capture(layer) as captured:
            model(x)
        return captured.activation

    def head(activation: Tensor) -> Tensor:
        if inputs is None or len(inputs) not in (1, len(activation)):
            raise ValueError("the network cannot be cut at this layer: call features with one image first")
        handle = layer.register_forward_hook(lambda *_: activation.clone())
        try:
            return model(inputs.expand(len(activation), *inputs.shape[1:]))
        finally:
            handle.remove()

    return features, head


class Counter:
    """Head evaluations spent inside a `counting` block; a forward+backward counts GRADIENT_COST."""

    total: float = 0


_counter: ContextVar[Counter | None] = ContextVar("counter", default=None)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count the network evaluations of the CAM methods called inside the block."""
    token = _counter.set(counter := Counter())
    try:
        yield counter
    finally:
        _counter.reset(token)


def count(evaluations: float) -> None:
    """Add evaluations to the innermost `counting` block, if there is one."""
    if (counter := _counter.get()) is not None:
        counter.total += evaluations
