"""Where a mask over positions may be applied: behind everything that acts on each position alone.

A coalition mixes the activation of the image with a baseline, position by position. What acts on each position alone (1×1
convolution, batch norm, activation) gives for a coalition the mixture of its two results, so it is run once for both. If what
follows is affine in the mixture (average pooling, flattening, a linear layer), a coalition costs one product with
cached vectors instead of a pass through the network.
"""

import operator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import timm.layers
import torch
import torch.nn.functional as F
from torch import fx, nn

from .layers import cut_graph

_POINTWISE = (
    *(
        nn.Identity,
        nn.BatchNorm2d,
        nn.Dropout,
        nn.Dropout2d,
        timm.layers.BatchNormAct2d,
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
    ),
    *(nn.SiLU, nn.GELU, nn.ELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
)
_POINTWISE_FUNCTIONS = {
    F.relu,
    F.relu6,
    F.silu,
    F.gelu,
    F.hardswish,
    F.dropout,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
}
_TOGETHER = {
    operator.add,
    operator.iadd,
    torch.add,
    operator.mul,
    torch.mul,
}  # of tensors that are pointwise already
_AFFINE = (nn.Identity, nn.Dropout, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Linear)
_AFFINE_FUNCTIONS = {F.adaptive_avg_pool2d, F.avg_pool2d, F.dropout, torch.flatten, torch.mean}
_AFFINE_METHODS = {"mean", "flatten"}


class Parts(NamedTuple):
    """A head in parts: mixed(*pointwise(A)) == head(A), and mixed(*z) == rest(affine(*z))."""

    pointwise: fx.GraphModule  # acts on each position alone
    mixed: fx.GraphModule  # everything behind it
    affine: fx.GraphModule | None  # of `mixed` what is affine in its inputs: pooling, flatten, linear, no convolution
    rest: fx.GraphModule | None
    additive: bool  # whether `rest` does nothing


_PARTS: WeakKeyDictionary[fx.GraphModule, Parts] = WeakKeyDictionary()


def parts_of(head: fx.GraphModule) -> Parts:
    """Cut a head of `layers.split` into its parts; remembered for as long as the head lives."""
    if head not in _PARTS:
        pointwise, mixed = _cut_behind(head, _is_pointwise)
        affine, rest = _cut_behind(mixed, _is_affine)
        inputs, works = (
            sum(map(_is_input, mixed.graph.nodes)),
            [n for n in affine.graph.nodes if not _is_plumbing(n)],
        )
        if not works or sum(map(_is_input, rest.graph.nodes)) > inputs:
            affine = rest = None
        additive = rest is not None and all(map(_is_plumbing, rest.graph.nodes))
        _PARTS[head] = Parts(pointwise, mixed, affine, rest, additive)
    return _PARTS[head]


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder"


def _is_plumbing(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or node.target == "clone"


def _cut_behind(head: fx.GraphModule, belongs) -> tuple[fx.GraphModule, fx.GraphModule]:
    inside = set()
    for node in head.graph.nodes:
        arguments = [n for n in node.all_input_nodes if n.op != "get_attr"]
        follows = arguments and all(n in inside for n in arguments)
        if _is_input(node) or (follows and (node.target == "clone" or belongs(head, node, arguments))):
            inside.add(node)
    frontier = [node for node in head.graph.nodes if node in inside and any(user not in inside for user in node.users)]
    return cut_graph(head, head.graph, frontier)


def _is_pointwise(head: fx.GraphModule, node: fx.Node, arguments: list[fx.Node]) -> bool:
    if node.op == "call_module":
        module = head.get_submodule(node.target)
        if isinstance(module, nn.Conv2d):
            return module.kernel_size == (1, 1) == module.stride and module.padding in (
                (0, 0),
                "same",
                "valid",
            )
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:  # takes its statistics from the batch
            return False
        return isinstance(module, _POINTWISE)
    if node.op == "call_function" and node.target in _TOGETHER:
        return len(arguments) == 2
    return node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS


def _is_affine(head: fx.GraphModule, node: fx.Node, arguments: list[fx.Node]) -> bool:
    if node.op == "call_module":
        return isinstance(head.get_submodule(node.target), _AFFINE)
    known = _AFFINE_FUNCTIONS if node.op == "call_function" else _AFFINE_METHODS
    return node.op in ("call_function", "call_method") and node.target in known and len(arguments) == 1
