"""What methods and metrics ask of their arguments. Every refusal is one sentence or two: the cause, and the way out."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor, nn
from tqdm import tqdm


def check_model(model: nn.Module) -> nn.Module:
    """`model` itself. Raises TypeError for what is no network."""
    if not isinstance(model, nn.Module):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(
            f"the model must be a torch.nn.Module, not {found}: load_model(name) or open_model(name) gives one"
        )
    return model


def check_input(x: Tensor, target: Tensor | int) -> Tensor:
    """`target` as a tensor (N,) on x's device. Raises ValueError for an x that is no finite image batch or a wrong target."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
        found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating point tensor (N,3,H,W), not {found}; cam_utils.preprocess makes one")
    if x.is_meta or x.layout != torch.strided:
        found = (
            "without values, on the device meta" if x.is_meta else f"of layout {x.layout}: x.to_dense() makes it one"
        )
        raise ValueError(f"x must be a dense tensor with values, not {found}")
    if not x.isfinite().all():
        raise ValueError("x contains NaN or infinite values: look at the image and its normalisation")
    try:
        ids = torch.as_tensor(target, device="cpu" if isinstance(target, Tensor) and target.is_meta else x.device)
        whole = not (ids.is_meta or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        whole = whole and ids.shape in ((), (1,), (len(x),))
    except (TypeError, ValueError, RuntimeError):  # None, a string, an int that has too many digits
        whole = False
    if not whole:
        found = target.tolist() if isinstance(target, Tensor) and not target.is_meta else target
        raise ValueError(
            f"target must be an integer class id for each of the {len(x)} images, or one for all, not {str(found)[:80]!s}"
        )
    return ids.long().expand(len(x))


def check_output(logits: Tensor, target: Tensor | None = None) -> Tensor:
    """`logits` itself. Raises ValueError if it is not a finite (N,K) or a target lies outside 0 … K-1."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        hint = "" if isinstance(logits, Tensor) else ": wrap it in a module whose forward returns the logits alone"
        raise ValueError(f"the model must put out logits (N,K), not {found}{hint}")
    check_finite(logits, "the model's output")
    if target is not None and (target.min() < 0 or target.max() >= logits.shape[1]):
        raise ValueError(
            f"target {target.tolist()} is out of range: the model's classes are 0 to {logits.shape[1] - 1}"
        )
    return logits


def logits_of(network: Callable, *inputs: Tensor, target: Tensor | None = None) -> Tensor:
    """What a network or a part of it puts out, as `check_output` wants it, one row for each row of the inputs."""
    with blamed_on(inputs[0]):
        logits = network(*inputs)
    check_output(logits, target)
    if len(logits) != len(inputs[0]):
        raise ValueError(
            f"the model puts out {len(logits)} rows of logits for {len(inputs[0])} images: each must get its own"
        )
    return logits


def slope(y: Tensor, activation: Tensor) -> Tensor:
    """dy/d(activation). Raises ValueError where there is none, or no finite one."""
    message = (
        "the output does not depend on the layer through differentiable operations: choose a layer that it is made from"
    )
    if not y.requires_grad:
        raise ValueError(message)
    with blamed_on(activation):
        (gradient,) = torch.autograd.grad(y, activation, allow_unused=True)
    if gradient is None:
        raise ValueError(message)
    return check_finite(gradient, "the gradient of the output by the layer")


def single(t: Tensor) -> Tensor:
    """`t` in float32 at least: half precision has no room for a gradient's third power or a difference of probabilities."""
    return t.float() if t.itemsize == 2 else t


def check_finite(values: Tensor, what: str) -> Tensor:
    """`values` itself. Raises ValueError for NaN or infinite ones."""
    if not values.isfinite().all():
        raise ValueError(f"{what} contains NaN or infinite values: look at the network's weights, precision and input")
    return values


@contextmanager
def blamed_on(x: Tensor) -> Iterator[None]:
    """What torch or a forward refuses inside the block as a ValueError that says what the network was given."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"the network fails on an input {x.dtype} {tuple(x.shape)} on {x.device}: {one_line(error)}. "
            "Channels, size, precision and device must be those it was made for"
        ) from error


def check_baseline(baseline: Tensor, like: Tensor, what: str) -> Tensor:
    """`baseline` as a tensor like `like`. Raises ValueError if it is not finite, or for both shapes if it does not broadcast."""
    if baseline.is_complex() or baseline.is_meta or not baseline.isfinite().all():
        raise ValueError(
            f"a baseline must be real and finite, this one is {baseline.dtype} or has NaN or infinite values"
        )
    try:
        return baseline.to(like).expand_as(like)
    except RuntimeError:
        shapes = f"{tuple(baseline.shape)} does not broadcast to the {what} {tuple(like.shape)}"
        raise ValueError(f"baseline {shapes}") from None


def check_choice(name: str, value: str, known) -> str:
    """`value` itself. Raises ValueError that names what there is to choose from."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def check_count(name: str, value: int, least: int = 1, most: float = float("inf")) -> int:
    """`value` as an int. Raises ValueError if it is no whole number from `least` to `most`."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or not least <= count <= most:
        which = f"of at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {which}, not {value!r}")
    return count


def check_positive(**values: float) -> None:
    """Raises ValueError for a value, given by its name, that is no finite number above 0."""
    for name, value in values.items():
        if not isinstance(value, Real) or not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, not {value!r}")


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """`generator` itself; None: a new one with seed 0, so that every image draws alike whatever its batch."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, not {type(generator).__name__}: torch.Generator().manual_seed(0)"
        )
    return generator


def chunks(items: Tensor, batch_size: int, name: str, progress: bool | None):
    """`items` in batches of `batch_size`, under a progress bar called `name` (None: on a terminal). ValueError below 1."""
    disable = None if progress is None else not progress
    return tqdm(items.split(check_count("batch_size", batch_size)), desc=name, leave=False, disable=disable)


def one_line(error: Exception) -> str:
    """An error's message without its line breaks, at most 300 characters of it."""
    return " ".join(str(error).split())[:300]
