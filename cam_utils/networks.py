"""A network by whatever name a user has for it: one of `models.REGISTRY`, one of timm, or a function of the user's own code."""

import importlib
import sys
from pathlib import Path
from unittest import mock

import timm
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from .layers import last_feature_maps
from .models import IMAGENET_CLASSES, REGISTRY, ModelSpec, load_model


def open_model(name: str, weights: str | Path = "pretrained") -> nn.Module:
    """A network in evaluation mode with a `spec`, ready for `explain`.

    name: a key of REGISTRY; "timm:NAME", any network of timm; or "module:function", a function without arguments in a Python
    module of the current folder or the installed packages that returns the network. weights: "pretrained"
    (REGISTRY: the ImageNet weights; timm: those in its cache; module:function: as the function returns it), "random", or a
    file with a state dict, read with weights_only=True. A network without a `spec` gets one by `guess_spec`. Raises
    ValueError or FileNotFoundError with what to do.
    """
    if name in REGISTRY:
        return load_model(name, weights)
    kind, colon, what = name.partition(":")
    if not colon or not what:
        raise ValueError(
            f"unknown model {name!r}: give one of {', '.join(REGISTRY)}, or timm:NAME, or module:function of your own code"
        )
    model = _from_timm(what, weights) if kind == "timm" else _call(kind, what)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returns no torch.nn.Module but a {type(model).__name__}")
    if str(weights) not in ("pretrained", "random"):
        _load(model, Path(weights))
    model = model.eval().requires_grad_(False)
    if not isinstance(getattr(model, "spec", None), ModelSpec):
        model.spec = guess_spec(model, what)
    return model


def guess_spec(model: nn.Module, name: str) -> ModelSpec:
    """timm's word on a network's input, else ImageNet's usual one, with the last feature maps as layer. Cost: 1 forward pass."""
    config = timm.data.resolve_data_config(model=model)  # without a word: 224 pixels, ImageNet's mean and std
    size = config["input_size"][-1]
    x = torch.zeros(1, 3, size, size).to(next(model.parameters()))
    layer, classes = last_feature_maps(model, x)
    names = IMAGENET_CLASSES if classes == len(IMAGENET_CLASSES) else tuple(f"class {i}" for i in range(classes))
    return ModelSpec(
        name=name,
        layer=layer,
        input_size=size,
        resize_size=round(size / config["crop_pct"]),
        interpolation=InterpolationMode(config["interpolation"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        class_names=names,
        source="user",
    )


def _from_timm(name: str, weights: str | Path) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        raise ValueError(f"timm has no model {name!r}" + (f". Did you mean: {', '.join(near)}?" if near else ""))
    if str(weights) != "pretrained":
        return timm.create_model(name, pretrained=False)
    try:
        with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):  # nothing is fetched unasked
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # not in the cache, or no weights at all: each by an exception of another library
        raise FileNotFoundError(
            f"the weights of timm:{name} are not in timm's cache on this machine ({type(error).__name__}): give a file with "
            f"its state dict, or fetch them where there is a network, by timm.create_model({name!r}, pretrained=True)"
        ) from None


def _call(module: str, function: str) -> nn.Module:
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"cannot import {module}: {error}. It is looked for in this folder and the installed packages"
        ) from None
    finally:
        sys.path.remove("")
    if not callable(getattr(found, function, None)):
        near = [name for name in vars(found) if callable(vars(found)[name]) and not name.startswith("_")]
        raise ValueError(f"{module} has no function {function!r}. It has: {', '.join(near[:8]) or 'none'}")
    return getattr(found, function)()


def _load(model: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"no weights in {file}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(state, strict=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{file} does not hold a state dict of this network: {reason}") from None
