"""What the experiments are made on: images, each with what is known of its right explanation, and networks."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from .benchmark import DEVELOPMENT, fingerprint, fresh_photos
from .data import Photo, image_files, load_photos, make_shapes, mosaic, mosaic_masks
from .files import write_file
from .layers import evaluating
from .models import IMAGENET_CLASSES, load_model, preprocess, spec_of
from .shapes import CLASS_NAMES
from .training import shapes_classifier, shapes_net

SETS = {
    "photos": "photos of data/photos that no constant of Owen-CAM was chosen on",
    "development": "the other photos of data/photos",
    "mosaics": "2×2 mosaics of four such photos as in `photos`, each of its classes explained: the Grid Pointing Game",
    "shapes": "generated images whose object is known to the pixel, for networks trained on the spot",
    "watermark": "the same images, every one with the watermark that is the shortcut of networks trained with it",
    "data": "images of a folder of yours",
}
CLASSES = dict.fromkeys(SETS, IMAGENET_CLASSES) | {
    "shapes": CLASS_NAMES,
    "watermark": CLASS_NAMES,
    "data": None,
}  # None: any
ON_THE_SPOT = {  # name: head, and the probability with which the watermark tells class 0 from the others in training
    "shapes_net_gap": ("gap", None),
    "shapes_net_fc": ("fc", None),
    "shapes_net_gap_watermark": ("gap", 1.0),
    "shapes_net_fc_watermark": ("fc", 1.0),
}
TRAINING = {"images": 2000, "epochs": 10}
_TRAIN = "import json, sys; from cam_utils import subjects; subjects._train_alone(*json.loads(sys.argv[1]))"
CONFIDENT = 0.5  # a photo in a mosaic is classified rightly with at least this probability


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of one of the SETS: where its pixels are, and what is known of it."""

    set: str
    name: str
    digest: str  # of the pixels or the files they are in
    labels: tuple[int, ...] = ()  # the true classes as far as known: none, one, or a mosaic's four
    files: tuple[str, ...] = ()  # one, or a mosaic's four
    pixels: np.ndarray | None = field(default=None, repr=False)  # (H,W,3) uint8 where there is no file
    region: np.ndarray | None = field(default=None, repr=False)  # (H,W) bool: the object that gives the class
    watermark: np.ndarray | None = field(default=None, repr=False)  # (H,W) bool


def load(picture: Picture, model: nn.Module) -> Tensor:
    """The network's input (1,3,H,W). Raises ValueError for a file that has changed since the picture was listed."""
    image = picture.pixels
    if picture.files:
        if _digest_of(picture.files) != picture.digest:
            raise ValueError(f"{', '.join(picture.files)} changed during the run: start again")
        image = picture.files[0] if len(picture.files) == 1 else _mosaic(picture.files, model)
    parameter = next(model.parameters())
    return preprocess(image, model).to(parameter.device, parameter.dtype, memory_format=torch.channels_last)


def cells_of(x: Tensor) -> Tensor:
    """The cells of a 2×2 mosaic in the network's input (1,3,H,W): (4,H,W) bool. The centre crop leaves them quarters."""
    return torch.from_numpy(mosaic_masks(2, 2, *x.shape[2:])).to(x.device)


def pictures_for(model: nn.Module, sets: Iterable[str], counts: dict[str, int], seed: int) -> dict[str, list[Picture]]:
    """{set: its pictures} for those of the built-in sets whose classes are the model's.

    counts: how many of each set. Photos are spread over the alphabet, whatever the seed; it draws mosaics and shapes.
    """
    made = {}
    for name in sets:
        count = counts.get(name, 0)
        if CLASSES[name] != spec_of(model).class_names or not count:
            continue
        if name == "mosaics":
            made[name] = mosaics(model, count, seed)
        elif name in ("shapes", "watermark"):
            made[name] = shapes(count, seed, marked=name == "watermark")
        else:
            photos = fresh_photos(count, development=name == "development")
            made[name] = [_of_photo(photo, name) for photo in photos]
    return made


def folder(path: str | Path, limit: int | None = None, seed: int = 0) -> list[Picture]:
    """The images in `path`, those in its subfolders too (an ImageFolder tree), sorted; named by their path inside it.

    Any file counts that ends like an image which Pillow can open, hidden ones excepted. limit: that many, drawn from `seed`.
    Raises ValueError for a folder without images.
    """
    path = Path(path).expanduser()
    found = sorted((file.relative_to(path).as_posix(), file) for file in image_files(path))
    if limit is not None and limit < len(found):
        found = [found[i] for i in sorted(np.random.default_rng(seed).choice(len(found), limit, replace=False))]
    files = [(_text(name), str(file.resolve())) for name, file in found]
    return [Picture("data", name, _digest_of((file,)), files=(file,)) for name, file in files]


def mosaics(model: nn.Module, count: int, seed: int) -> list[Picture]:
    """Mosaics of photos of four different classes that `model` classifies rightly and with confidence.

    A photo comes again only after all others have been used. Raises ValueError if fewer than four photos serve.
    """
    serving = {}  # class: its photos
    for photo in load_photos():
        if photo.name not in DEVELOPMENT:
            with evaluating(model), torch.no_grad():
                probabilities = model(load(_of_photo(photo, "photos"), model)).softmax(1)[0]
            if int(probabilities.argmax()) == photo.target and probabilities[photo.target] >= CONFIDENT:
                serving.setdefault(photo.target, []).append(photo)
    if len(serving) < 4:
        raise ValueError(f"{spec_of(model).name} is sure of {len(serving)} classes only: no mosaics can be made for it")
    draws, order, made = np.random.default_rng(seed), [], []
    for _ in range(count):
        if len(order) < 4:
            order = [photos[draws.integers(len(photos))] for photos in serving.values()]
            draws.shuffle(order)
        four, order = order[:4], order[4:]
        files = tuple(str(photo.path) for photo in four)
        labels = tuple(photo.target for photo in four)
        made.append(Picture("mosaics", "+".join(p.name for p in four), _digest_of(files), labels, files))
    return list({picture.name: picture for picture in made}.values())


def shapes(count: int, seed: int, *, marked: bool) -> list[Picture]:
    """Generated images that no network of the same seed was trained on; marked: the watermark is on every one of them."""
    with_first, with_rest = (make_shapes(count, seed=seed + 1, watermark=p if marked else None) for p in (1.0, 0.0))
    made = []
    for i, label in enumerate(with_first.labels.tolist()):
        data = with_first if label == 0 else with_rest  # the watermark is in all images of class 0, in all others
        pixels = np.rint(data.images[i].transpose(1, 2, 0) * 255).astype(np.uint8)
        known = {"region": data.masks[i], "watermark": data.watermark_masks[i] if marked else None}
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        made.append(
            Picture("watermark" if marked else "shapes", f"shape_{i:03d}", digest, (label,), (), pixels, **known)
        )
    return made


def networks(
    models: Iterable[str | nn.Module],
    sets: Iterable[str],
    seed: int,
    progress: bool | None,
    kept: Path | None = None,
    at_once: int = 1,
) -> dict:
    """{name: network} for the names and networks of `models` that one of the sets is for; some are trained here (`train`).

    at_once: so many that `kept` lacks are trained at the same time, each by one thread of a process of its own.
    """
    wanted, found = [CLASSES[name] for name in sets], {}
    if at_once > 1 and kept and (None in wanted or CLASS_NAMES in wanted):
        names = [name for name in dict.fromkeys(models) if name in ON_THE_SPOT]
        missing = [name for name in names if _kept(_file_of(name, seed, kept), ON_THE_SPOT[name][0]) is None]
        for start in range(0, len(missing), at_once) if len(missing) > 1 else ():  # a single one needs no process
            _train_at_once(missing[start : start + at_once], seed, kept, progress)
    for model in models:
        name = spec_of(model).name if isinstance(model, nn.Module) else model
        if name in found:
            raise ValueError(f"two networks are called {name}: give the spec of one another name")
        if isinstance(model, nn.Module):
            found[name] = model
        elif None in wanted or (CLASS_NAMES if name in ON_THE_SPOT else IMAGENET_CLASSES) in wanted:
            found[name] = train(name, seed, progress, kept) if name in ON_THE_SPOT else pretrained(name)
    return found


def pretrained(name: str) -> nn.Module:
    """`load_model(name)` with channels last in memory, which is faster on a CPU; values differ by rounding."""
    return load_model(name).to(memory_format=torch.channels_last)


def train(name: str, seed: int = 0, progress: bool | None = None, kept: Path | None = None) -> nn.Module:
    """A network of ON_THE_SPOT, trained on shapes with the watermark as a shortcut to class 0 or without, in a minute.

    kept: a folder of networks that the same code trained; it is taken from there, or put there.
    """
    head, watermark = ON_THE_SPOT[name]
    file = kept and _file_of(name, seed, kept)
    model = _kept(file, head) if file else None
    if model is None:
        options = TRAINING | {"watermark": watermark, "seed": seed, "progress": progress}
        model = shapes_classifier(head, memory_format=torch.channels_last, **options)
        if file:
            torch.save({"state": model.state_dict(), "fingerprint": fingerprint(model)}, buffer := io.BytesIO())
            write_file(file, buffer.getvalue())
    model.spec = replace(model.spec, name=name)
    return model


def _train_at_once(names: list[str], seed: int, kept: Path, progress: bool | None) -> None:
    """What fails here is left for `train`, which says why."""
    running: list[subprocess.Popen] = []
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        for name in names:
            task = json.dumps([name, seed, str(kept), TRAINING])
            running.append(subprocess.Popen([sys.executable, "-c", _TRAIN, task], **quiet))
        for one in tqdm(running, desc="training", unit="network", disable=None if progress is None else not progress):
            one.wait()
    except OSError:
        pass
    finally:
        for one in running:
            one.kill()  # does nothing to one that has ended
            one.wait()


def _train_alone(name: str, seed: int, kept: str, training: dict) -> None:
    torch.set_num_threads(1)
    TRAINING.update(training)  # of the process that asks
    train(name, seed, False, Path(kept))


def _file_of(name: str, seed: int, kept: Path) -> Path:
    return kept / f"{name}-{seed}.pt"


def _kept(file: Path, head: str) -> nn.Module | None:
    """The network in a file, or None where there is none that is whole."""
    model = shapes_net(head, class_names=CLASS_NAMES).to(memory_format=torch.channels_last)
    try:
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["state"], strict=True)
        whole = fingerprint(model) == saved["fingerprint"]
    except Exception:  # missing, cut off, or something else altogether
        return None
    return model.eval().requires_grad_(False) if whole else None


def _text(name: str) -> str:
    """A file's name as a table can hold it: bytes that are not UTF-8 as \\xe9, and \\r, which Python's csv does not quote."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\r", "\\r")


def _of_photo(photo: Photo, name: str) -> Picture:
    return Picture(name, photo.name, _digest_of((str(photo.path),)), (photo.target,), (str(photo.path),))


def _mosaic(files: tuple[str, ...], model: nn.Module) -> Image.Image:
    return mosaic(files, size=2 * spec_of(model).input_size)


def _digest_of(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
