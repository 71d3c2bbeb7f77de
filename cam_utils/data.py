"""Reading any image file rightly, the photo set with its attribution, mosaics; and the generated shapes."""

import csv
import difflib
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import paths
from .checks import check_count
from .shapes import Shapes, make_shapes

__all__ = [
    "Photo",
    "Shapes",
    "image_files",
    "load_image",
    "load_photo",
    "load_photos",
    "make_shapes",
    "mosaic",
    "mosaic_masks",
]

TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
ORIENTATIONS = {value: Image.Transpose[turn] for value, turn in enumerate(TURNS, start=2)}  # EXIF tag 274


def image_files(folder) -> list[Path]:
    """The image files in a folder and its subfolders, sorted: whatever ends like what Pillow opens.

    Hidden ones are left out, and those in hidden folders. Raises ValueError for what is no folder, or has no image.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"a folder must be a path, not a {type(folder).__name__}")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images: give one, or load_image a single file")
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    shown = (f for f in folder.rglob("*") if not any(part[0] == "." for part in f.relative_to(folder).parts))
    found = [f for f in shown if f.suffix.lower() in endings and f.is_file()]
    if not found:
        raise ValueError(f"no image in {folder} or its subfolders; known endings: {' '.join(sorted(endings))}")
    return sorted(found)


def load_image(source) -> Image.Image:
    """Read `source` as an 8-bit RGB picture, the way a viewer shows it; the result shares nothing with `source`.

    source: the path of an image file; a PIL image; or an array of uint8, uint16 or float in [0,1] with shape (H,W),
        (H,W,1), (H,W,2) grey and alpha, (H,W,3) or (H,W,4) RGB and alpha.
    The EXIF orientation is applied, transparency composited on white, the first frame of an animation taken (of a
    PIL image the current one); CMYK and other colour models are converted by Pillow without a colour profile.
    Single-channel images keep their range: 16 bit is divided by 257; the modes I and F state no range, so that the
    smallest of 0..1 (F alone), 0..255 and 0..65535 that holds every value is taken.

    Raises FileNotFoundError, IsADirectoryError, PermissionError, or ValueError (empty, truncated or not an image, a
    web address, above Pillow's limit of pixels, non-finite or out of range), naming the file and the cause;
    TypeError for anything else.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, f"PIL image (mode {source.mode}, {source.width} x {source.height})")
    if isinstance(source, np.ndarray):
        return _rgb(_image_of(source), "array")
    if isinstance(source, (str, os.PathLike)) and isinstance(os.fspath(source), str):
        return _read(os.fspath(source))
    kind, hint = type(source).__name__, ""
    if hasattr(source, "detach"):
        kind, hint = "torch tensor", ": preprocess(image, model) wants one of those and makes the tensor"
    raise TypeError(f"an image must be a path, a PIL image or a numpy array, not a {kind}{hint}")


def _read(name):
    """The image file `name` as RGB."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", name):
        raise ValueError(f"{name[:200]!r} is a web address: download the image first and give the file's path")
    path = Path(os.path.expanduser(name))
    quoted = repr(str(path))
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(f"no such image file: {quoted} (looked from {os.getcwd()!r})") from None
    except ValueError as error:  # a null byte in the name
        raise ValueError(f"not a path: {name!r} ({error})") from None
    if path.is_dir():
        raise IsADirectoryError(f"{quoted} is a folder, not an image file")
    if not path.is_file():
        raise ValueError(f"{quoted} is not a regular file")
    if size == 0:
        raise ValueError(f"{quoted} is empty (0 bytes)")
    try:
        image = Image.open(path)
    except PermissionError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        hint = "Shrink it first, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        raise ValueError(f"{quoted} is too large: {error} {hint}") from None
    except Exception as error:  # almost always UnidentifiedImageError; the parsers of broken headers raise others
        with path.open("rb") as file:
            start = file.read(12)
        hint = "convert it to PNG or JPEG first if it is HEIC, SVG, PDF or raw"
        raise ValueError(f"{quoted} is no image that Pillow can read, it starts with {start}; {hint}") from error
    with image:
        return _rgb(image, quoted)


def _rgb(image, name):
    """A new RGB image without metadata; `name` is for error messages."""
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels ({image.width} x {image.height})")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        raise ValueError(
            f"{name} cannot be decoded, it is truncated or damaged: {str(error) or 'was it closed?'}"
        ) from error
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image, name)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
    try:
        image = image if image.mode == "RGBA" else image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name}: colour mode {image.mode} cannot be converted to RGB: {error}") from error
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image if image.mode == "RGBA" else None)
    return canvas if orientation is None else canvas.transpose(orientation)


def _orientation(image):
    """The transposition that the EXIF data asks for, or None; damaged EXIF data counts as none, as in viewers."""
    try:
        value = image.getexif().get(0x0112)
    except Exception:  # Pillow raises a dozen types here, none of which concerns the pixels
        return None
    return ORIENTATIONS.get(value)


def _eight_bit(image, name):
    """A single-channel image of 16 bit, of integers or of floats as L (LA where one grey value is declared transparent)."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or infinite values")
    least, most = values.min(), values.max()
    ranges = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    if least < 0 or most > 65535:
        raise ValueError(f"{name}: values from {least} to {most} do not fit any of the ranges 0..{ranges}")
    scale = 255 / next(top for top in ranges if most <= top)
    grey = Image.fromarray(np.rint(values * np.float32(scale)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, (int, float)):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _image_of(array):
    """A checked array as PIL image of 8 bit."""
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 2, 3, 4)):
        first = " (channels first? np.moveaxis(array, 0, -1) turns them)" if shape[0:1] in ((1,), (3,), (4,)) else ""
        raise ValueError(f"array of shape {shape} is no image: give (H,W) or (H,W,C) with 1 to 4 channels{first}")
    if array.size == 0:
        raise ValueError(f"array of shape {shape} has no pixels")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("array contains NaN or infinite values")
        if array.min() < 0 or array.max() > 1:
            raise ValueError(f"float array must lie in [0,1], it goes from {array.min():.6g} to {array.max():.6g}")
        array = np.rint(array * np.float32(255))
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = np.rint(array / np.float32(257))
    elif array.dtype != np.uint8:
        raise ValueError(f"array of dtype {array.dtype}: give uint8, uint16 or float in [0,1]")
    array = array[:, :, 0] if shape[2:] == (1,) else array
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


@dataclass(frozen=True)
class Photo:
    """One photo of `data/photos` with its attribution."""

    name: str  # "dog"
    path: Path
    target: int  # ImageNet class id, 0..999
    label: str  # "German shepherd"
    top1_right: bool  # does EfficientNet-Lite0 rank the target first?
    licence: str
    author: str
    source: str  # page of the original; "" where the package names none
    sha256: str  # of the file

    @property
    def image(self) -> Image.Image:
        """The photo as RGB picture, read anew at each access."""
        return load_image(self.path)


def load_photos(names=None, *, label=None, licence=None, top1_right=None) -> list[Photo]:
    """The photos of `data/photos` that pass every filter, sorted by name (an empty list where none does).

    names: one name or several ("dog" or "dog.jpg"); label, licence: one exact text, as in photos.csv; top1_right: bool.
    Raises ValueError for a name, label or licence that no photo has, with the nearest that exist, and for a photo whose
    sha256 is not that of photos.csv.
    """
    every = _every_photo()
    photos = every
    for field, wanted in (("name", names), ("label", label), ("licence", licence)):
        if wanted is not None:
            wanted = _texts(field, wanted)
            wanted = {name.removesuffix(".jpg") for name in wanted} if field == "name" else wanted
            _check_known(field, wanted, {getattr(photo, field) for photo in every})
            photos = [photo for photo in photos if getattr(photo, field) in wanted]
    photos = [photo for photo in photos if top1_right is None or photo.top1_right == top1_right]
    for photo in photos:
        _check_sha256(photo)
    return photos


def load_photo(name) -> Photo:
    """The photo called `name`; ValueError with the nearest names where there is none."""
    if not isinstance(name, str):
        raise TypeError(f"a photo is called by its name, not by a {type(name).__name__}: load_photos gives several")
    return load_photos(name)[0]


def _every_photo():
    """All rows of photos.csv, sorted by name. Raises ValueError that names the row that is wrong."""
    file, row = paths.PHOTOS / "photos.csv", {}
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            photos = {}
            for row in csv.DictReader(opened):
                photo = _photo(row)
                if photos.setdefault(photo.name, photo) is not photo:
                    raise ValueError("the name is there twice")
        if not photos:
            raise ValueError("it has no photos")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        why = f"the column {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is damaged, restore it (git checkout): {row.get('file')}: {why}") from None
    return [photos[name] for name in sorted(photos)]


def _texts(field, wanted):
    """One text or several as a set."""
    texts = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a photo's {field} is a text: give one or several, not {wanted!r}")
    return set(texts)


def _photo(row):
    target, right = int(row["imagenet_index"]), row["top1_right"] == "True"
    if not 0 <= target < 1000 or row["top1_right"] not in ("True", "False"):
        raise ValueError(
            f"imagenet_index {target} must be from 0 to 999, top1_right {row['top1_right']!r} True or False"
        )
    path = paths.PHOTOS / row["file"]
    attribution = row["licence"], row["author"], row["source"]
    return Photo(path.stem, path, target, row["label"], right, *attribution, row["sha256"])


def _check_sha256(photo):
    found = hashlib.sha256(photo.path.read_bytes()).hexdigest()
    if found != photo.sha256:
        raise ValueError(
            f"{photo.path} is not the photo that photos.csv describes: get it again (git checkout {photo.path.name}), "
            f"or, if you replaced it on purpose, write its sha256 into photos.csv: {found}"
        )


def _check_known(field, wanted, known):
    for value in sorted(wanted - known):
        near = difflib.get_close_matches(value, known, n=3, cutoff=0.5) or sorted(known)[:5]
        near = ", ".join(near)
        raise ValueError(f"no photo has the {field} {value!r}; there are {len(known)}, for example {near}")


def mosaic(images, rows=2, columns=2, size=448) -> Image.Image:
    """One picture of rows x columns square cells, filled row by row: centre-cropped, resized bicubically.

    images: rows * columns of whatever `load_image` takes; size: the longer side in pixels. A cell has
    size / max(rows, columns) pixels, rounded where that is no integer. ValueError for a wrong number of images.
    """
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a sequence, not a {type(images).__name__}")
    images = [images] if isinstance(images, str) else list(images)
    _check_cells(rows, columns)
    if size < max(rows, columns):
        raise ValueError(f"{rows} x {columns} cells at size {size}: needs at least one cell and one pixel per cell")
    if len(images) != rows * columns:
        raise ValueError(f"{rows} x {columns} cells take {rows * columns} images, got {len(images)}")
    top, left = (_edges(cells, round(cells * size / max(rows, columns))) for cells in (rows, columns))
    canvas = Image.new("RGB", (left[-1], top[-1]))
    for index, image in enumerate(map(load_image, images)):
        i, j = divmod(index, columns)
        side = min(image.size)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        pixels = (left[j + 1] - left[j], top[i + 1] - top[i])
        square = image.crop((x, y, x + side, y + side))  # resize(box=...) would let the surroundings bleed in
        canvas.paste(square.resize(pixels, Image.Resampling.BICUBIC), (left[j], top[i]))
    return canvas


def mosaic_masks(rows, columns, h, w) -> np.ndarray:
    """(rows * columns, h, w) bool: the pixels of each cell of a `mosaic` seen whole at h x w.

    Every pixel is in exactly one cell, the one that holds its centre (the earlier one on a border). `preprocess`
    cuts the border of a picture, so that the network does not see the mosaic whole.
    """
    _check_cells(rows, columns)
    if h < rows or w < columns:
        raise ValueError(f"{rows} x {columns} cells need at least one pixel each, got {h} x {w} pixels")
    row = np.searchsorted(_edges(rows, h), np.arange(h), side="right") - 1
    column = np.searchsorted(_edges(columns, w), np.arange(w), side="right") - 1
    return (row[:, None] * columns + column[None, :])[None] == np.arange(rows * columns)[:, None, None]


def _check_cells(rows, columns):
    check_count("rows", rows)
    check_count("columns", columns)


def _edges(cells, length):
    """The cells + 1 borders of equal parts of `length` pixels, rounded to whole pixels."""
    return [int(i * length / cells + 0.5) for i in range(cells + 1)]
