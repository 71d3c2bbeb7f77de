"""A network by whatever name a user has for it: one of `models.REGISTRY`, one of timm, or a function of the user's own code."""

import contextlib
import difflib
import importlib
import inspect
import io
import pickle
import sys
from pathlib import Path
from unittest import mock

import timm
import torch
from torch import nn
from torchvision.transforms import InterpolationMode

from .checks import check_output, one_line
from .layers import candidate_layers
from .models import IMAGENET_CLASSES, REGISTRY, ModelSpec, load_model


def open_model(name: str, weights: str | Path = "pretrained") -> nn.Module:
    """A network in evaluation mode with a `spec`, ready for `explain`.

    name: a key of REGISTRY; "timm:NAME", any network of timm; or "module:function", a function without arguments in a Python
    module of the current folder or the installed packages that returns the network. weights: "pretrained"
    (REGISTRY: the ImageNet weights; timm: those in its cache; module:function: as the function returns it), "random", or a
    file with a state dict, read with weights_only=True. A network without a `spec` gets one by `guess_spec`. Raises
    ValueError or FileNotFoundError with what to do.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"a network is given by its name, not by a {type(name).__name__}; one that exists needs no opening"
        )
    if name in REGISTRY:
        return load_model(name, weights)
    kind, colon, what = name.partition(":")
    if not colon or not what:
        lower = name.lower().replace("-", "_")
        near = [key for key in REGISTRY if lower in key] or difflib.get_close_matches(lower, REGISTRY, n=3) or REGISTRY
        raise ValueError(
            f"unknown model {name!r}: give one of {', '.join(near)}, or timm:NAME, or module:function of your own code"
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
    size, like = config["input_size"][-1], next(model.parameters(), torch.zeros(1))
    try:
        layers, logits = candidate_layers(model, torch.zeros(1, 3, size, size).to(like))
    except RuntimeError as error:  # of a forward that wants another size, or other channels
        raise ValueError(
            f"{name} cannot take an RGB image of {size}×{size} pixels, which is assumed of a network without a spec: give it "
            f"one, model.spec = cam_utils.models.ModelSpec(...). {one_line(error)}"
        ) from error
    classes = check_output(logits).shape[1]
    names = IMAGENET_CLASSES if classes == len(IMAGENET_CLASSES) else tuple(f"class {i}" for i in range(classes))
    return ModelSpec(
        name=name,
        layer=list(layers)[-1],
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
        with (  # nothing is fetched unasked: from the hub, or, of some twenty networks, from elsewhere
            mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
            mock.patch("torch.hub.urlopen", side_effect=ConnectionError),
            contextlib.redirect_stdout(io.StringIO()),  # where torch.hub says that it downloads
        ):
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # not in the cache, or no weights at all: each by an exception of another library
        raise FileNotFoundError(
            f"the weights of timm:{name} are not in timm's cache on this machine ({type(error).__name__}): give a file with "
            f"its state dict, or fetch them where there is a network, by timm.create_model({name!r}, pretrained=True)"
        ) from None


def _call(module: str, function: str) -> nn.Module:
    module = module.removesuffix(".py")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever is wrong with the user's code
        raise ValueError(
            f"cannot import {module!r}: {type(error).__name__}: {one_line(error)}. A module is given by its name, such as "
            "networks or package.networks, and looked for in this folder and the installed packages"
        ) from error
    finally:
        sys.path.remove("")
    if not callable(getattr(found, function, None)):
        near = [name for name in vars(found) if callable(vars(found)[name]) and not name.startswith("_")]
        raise ValueError(f"{module} has no function {function!r}. It has: {', '.join(near[:8]) or 'none'}")
    function = getattr(found, function)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(
            f"{module}:{function.__name__} is called without arguments, and has some ({error}): write a function that gives them"
        ) from None
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{module}:{function.__name__} fails: {type(error).__name__}: {one_line(error)}") from error


def _load(model: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"no such file of weights: {str(file)!r}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # half a dozen types; torch's words advise to read the file without weights_only
        if not isinstance(error, pickle.UnpicklingError) or "Unsupported operand" in str(error):
            raise ValueError(
                f"{file} does not hold a state dict: it is damaged, or no file of torch.save but a pickle, which may run any "
                "code and is not read. Copy or save it again"
            ) from None
        raise ValueError(
            f"{file} does not hold a state dict, or more than one (a whole network?), which is not read since it may run any "
            "code: write it by torch.save(model.state_dict(), file)"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
        keys = ", ".join(map(repr, list(state)[:8])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{file} does not hold a state dict alone but {keys}: save the part that is one by torch.save(part, file)"
        )
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        wrapped = [key for key in state if key.startswith("module.")]
        hint = "; saved from nn.DataParallel: save model.module.state_dict()" if len(wrapped) == len(state) else ""
        raise ValueError(f"{file} holds the weights of another network{hint}. {one_line(error)}") from None
