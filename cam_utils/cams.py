"""The CAM methods, one function each: `method(model, layer, x, target) -> (N,h,w)`, signed, at the layer's resolution.

Common to all: `layer` is a module of the model or its dotted name, with output (N,C,h,w); x (N,3,H,W) is the
preprocessed input; target (N,) holds class ids (an int serves for all images). The model may be frozen or in training
mode, the caller under `no_grad`; the model is left as it was. A layer that does not exist, is not reached or is reached twice, a
non-finite input or output, or a target out of range raises ValueError. A is the activation (N,C,h,w), y the logit of the
target, G = dy/dA. The papers' final ReLU is left to `postprocess.rectify`.
"""

import torch
from torch import Tensor, nn

from .checks import check_finite, check_input, chunks, logits_of, single, slope
from .layers import activation_of, capture, count, evaluating, resolve_layer, split
from .pointwise import parts_of
from .postprocess import normalize, upsample

Layer = nn.Module | str


class NotDefined(ValueError):
    """CAM at a layer behind which more than pooling and one linear layer mix the positions."""


def grad_cam(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, eq. 1-2): channels weighted by their mean gradient. Cost: 1 forward, 1 backward."""
    A, G = activation_and_gradient(model, layer, x, target)
    return (G.mean((2, 3), keepdim=True) * A).sum(1)


def hires_cam(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> Tensor:
    """HiResCAM (Draelos & Carin 2020, eq. 4): gradient times activation, position by position. Cost: 1 forward, 1 backward."""
    A, G = activation_and_gradient(model, layer, x, target)
    return (G * A).sum(1)


def layer_cam(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> Tensor:
    """LayerCAM (Jiang et al. 2021, eq. 6-7): positive gradients times activation. Cost: 1 forward, 1 backward."""
    A, G = activation_and_gradient(model, layer, x, target)
    return (G.relu() * A).sum(1)


def xgrad_cam(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> Tensor:
    """XGrad-CAM (Fu et al. 2020, eq. 8): mean gradient weighted by the activation. Cost: 1 forward, 1 backward.

    A channel whose activations sum to zero gets weight 0. Where they nearly do (layers without a ReLU), the map hangs on
    the last digits, and half precision gives another one: see data/results/precision.csv.
    """
    A, G = activation_and_gradient(model, layer, x, target)
    weights = _ratio((G * A).sum((2, 3), keepdim=True), A.sum((2, 3), keepdim=True))
    return (weights * A).sum(1)


def grad_cam_pp(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018, eq. 5 and 19, for the payoff exp(y)). Cost: 1 forward, 1 backward.

    Deviation: the weights are those of the paper without the common positive factor exp(y), which would overflow.
    """
    A, G = map(single, activation_and_gradient(model, layer, x, target))
    alpha = _ratio(G**2, 2 * G**2 + A.sum((2, 3), keepdim=True) * G**3)
    return ((alpha * G.relu()).sum((2, 3), keepdim=True) * A).sum(1).to(x.dtype)


def cam(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> Tensor:
    """Class activation map (Zhou et al. 2016, eq. 2): the classifier's weights of the class applied at every position.

    Only for networks that end in global average pooling and one linear layer, with nothing between `layer` and the pooling
    but operations on each position alone (DenseNet's ReLU, a 1×1 convolution), which are carried out: then the mean of
    the map plus the class's bias is the logit. This is checked; any other network raises ValueError. Cost: 1 forward.
    """
    features, head = split(model, layer)
    target = check_input(x, target)
    with evaluating(model), torch.no_grad():
        A = activation_of(features, x)
        logits = logits_of(head, A, target=target)
        count(len(x))
        if isinstance(head, torch.fx.GraphModule):
            A = parts_of(head).pointwise(A)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    if linear and isinstance(A, Tensor) and A.ndim == 4 and linear[0].in_features == A.shape[1]:
        pooled = linear[0](A.mean((2, 3)))
        tolerance = 100 * torch.finfo(A.dtype).eps * logits.abs().max()
        if pooled.shape == logits.shape and (pooled - logits).abs().max() <= tolerance:
            return torch.einsum("nc,nchw->nhw", linear[0].weight.detach()[target], A)
    raise NotDefined(
        "CAM needs a network in which nothing but global average pooling and one linear layer mix the positions behind the "
        "chosen layer. Choose that layer, change and retrain the network (notebook 03), or use grad_cam."
    )


def score_cam(
    model: nn.Module,
    layer: Layer,
    x: Tensor,
    target: Tensor,
    *,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Tensor:
    """Score-CAM (Wang et al. 2020, algorithm 1): channels weighted by the logit of the image seen through them.

    Each channel, upsampled and min-max normalised, masks x; the softmax over channels of (logit - logit of the zero image)
    weighs the channels. Cost: C + 2 forward passes per image, `batch_size` images in memory at a time; an image that comes
    several times in a row, for several classes, is one. progress: True or False switches the bar; None shows it on a terminal.
    """
    layer, target = resolve_layer(model, layer), check_input(x, target)
    with evaluating(model), torch.no_grad():
        with capture(layer) as captured:
            logits_of(model, x, target=target)
        count(len(x))
        maps, seen, activation = [], None, check_finite(captured.activation, "the layer's activation")
        for image, A, c in zip(x, activation, target, strict=True):
            if seen is None or not torch.equal(image, seen):
                seen, logits = image, [_logits(model, torch.zeros_like(image)[None])]  # of all classes
                for channels in chunks(A, batch_size, "Score-CAM", progress):
                    masks = normalize(upsample(channels, image.shape[1:]))
                    logits.append(_logits(model, image * masks[:, None]))
                logits = torch.cat(logits)
            scores = logits[:, c]
            weights = (scores[1:] - scores[0]).softmax(0)
            maps.append(torch.einsum("c,chw->hw", weights, A))
    return torch.stack(maps)


def ablation_cam(
    model: nn.Module,
    layer: Layer,
    x: Tensor,
    target: Tensor,
    *,
    batch_size: int = 128,
    progress: bool | None = None,
) -> Tensor:
    """Ablation-CAM (Ramaswamy & Desai 2020, eq. 3-4): channels weighted by the relative fall of y when they are set to zero.

    Cost: 1 forward, C evaluations of the head per image, `batch_size` activations in memory at a time.
    Deviation: the fall is divided by |y|, so that a negative logit does not turn the map's sign. progress: as in `score_cam`.
    """
    layer, target = resolve_layer(model, layer), check_input(x, target)
    features, head = split(model, layer)
    with evaluating(model), torch.no_grad():
        maps = []
        for image, c in zip(x, target, strict=True):
            A = activation_of(features, image[None])
            y = logits_of(head, A, target=c[None])[0, c]
            count(1)
            scores = []
            for channels in chunks(torch.arange(A.shape[1], device=A.device), batch_size, "Ablation-CAM", progress):
                ablated = A.repeat(len(channels), 1, 1, 1)  # (M,C,h,w)
                ablated[torch.arange(len(channels)), channels] = 0
                scores.append(_logits(head, ablated)[:, c])
            weights = _ratio(y - torch.cat(scores), y.abs())
            maps.append(torch.einsum("c,chw->hw", weights, A[0]))
    return torch.stack(maps)


def activation_and_gradient(model: nn.Module, layer: Layer, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A and G = dy/dA, both (N,C,h,w), detached; y is the logit of the target. Cost: 1 forward, 1 backward of the head."""
    layer, target = resolve_layer(model, layer), check_input(x, target)
    with (
        evaluating(model),
        torch.inference_mode(False),
        torch.no_grad(),
        capture(layer, gradient=True) as captured,
    ):
        x, target = (tensor.clone() if tensor.is_inference() else tensor for tensor in (x, target))
        logits = logits_of(model, x, target=target)
        A = check_finite(captured.activation, "the layer's activation")
        G = slope(logits.gather(1, target[:, None]).sum(), A)
    return A.detach(), G


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    count(len(batch))
    return logits_of(model, batch)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return (a / b).where(b != 0, torch.zeros_like(a))
