"""Kinds of images, files and folders: `load_image`, `preprocess`, `load_photo`, `image_files`, `mosaic`."""

import io
import os
import struct
import zlib

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from cam_utils import explain, preprocess
from cam_utils.data import image_files, load_image, load_photo, load_photos, mosaic, mosaic_masks
from cam_utils.models import view
from conftest import no_superuser
from kinds import answered, refused

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = PICTURE.convert("L")


def encoded(kind: str, image: Image.Image = PICTURE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that says to be of this size, and holds next to nothing."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in (*parts, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header says to be of this size."""
    whole = encoded("JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def of_file(name: str, content: bytes):
    return lambda bench: load_image(bench.file(name, content))


# --- files that are no images

WHOLE = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
refused(
    "a file cut in the middle",
    ValueError,
    "(truncated or damaged|no image that Pillow can read)",
    lambda b, kind: load_image(b.file(f"a.{WHOLE[kind]}", encoded(kind)[: len(encoded(kind)) // 2])),
    WHOLE,
)
refused("a file cut in its header", ValueError, "a.png.*no image", of_file("a.png", encoded("PNG")[:20]))
refused(
    "a file cut off by one byte of its pixels", ValueError, "a.png.*truncated", of_file("a.png", encoded("PNG")[:-30])
)
DAMAGED = bytearray(encoded("PNG"))
DAMAGED[60:70] = bytes(10)
refused("a checksum that is wrong", ValueError, "a.png.*damaged", of_file("a.png", bytes(DAMAGED)))
refused(
    "a PNG that says to have billions of pixels",
    ValueError,
    "too large.*MAX_IMAGE_PIXELS",
    of_file("a.png", png(60000, 60000)),
)
refused(
    "a JPEG that says to have billions of pixels", ValueError, "too large.*Shrink", of_file("a.jpg", jpeg(65000, 65000))
)
refused("an image of a little too many pixels", ValueError, "too large.*MAX_IMAGE", of_file("a.png", png(10000, 10000)))
refused("a file that says to have no pixels", ValueError, "a.png", of_file("a.png", png(0, 9)))
refused("an empty file", ValueError, r"a.jpg' is empty \(0 bytes\)", of_file("a.jpg", b""))
refused(
    "a text called .jpg",
    ValueError,
    "no image that Pillow can read.*<!doctype",
    of_file("a.jpg", b"<!doctype html>404"),
)
refused("random bytes", ValueError, "no image that Pillow", of_file("a.png", np.random.default_rng(0).bytes(500)))
refused("an SVG", ValueError, "convert it to PNG", of_file("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>'))
refused("a PDF", ValueError, "PDF", of_file("a.pdf", b"%PDF-1.7 and so on"))

# --- paths

refused(
    "a missing file", FileNotFoundError, "no such image file.*looked from", lambda b: load_image(b.folder / "a.jpg")
)
refused("a folder as a file", IsADirectoryError, "is a folder, not an image", lambda b: load_image(b.folder))
refused("an empty path", IsADirectoryError, "is a folder", lambda b: load_image(""))


def link(bench, target: str):
    (bench.folder / "link.jpg").symlink_to(target)
    return bench.folder / "link.jpg"


refused(
    "a link to nothing", FileNotFoundError, "no such image file.*link.jpg", lambda b: load_image(link(b, "nothing.jpg"))
)
refused("a link to itself", OSError, "link.jpg", lambda b: load_image(link(b, "link.jpg")))
refused("a path through a file", OSError, "a.png", lambda b: load_image(b.file("a.png", encoded("PNG")) / "b.png"))
refused("a pipe", ValueError, "not a regular file", lambda b: (os.mkfifo(b.folder / "a"), load_image(b.folder / "a")))
refused("a device", ValueError, "not a regular file", lambda b: load_image(os.devnull))
refused("a name that is too long", OSError, "aaaa", lambda b: load_image("a" * 300))
refused("a null byte in a name", ValueError, "not a path", lambda b: load_image("a\0.jpg"))
refused("a path of Windows", FileNotFoundError, "no such image file", lambda b: load_image(r"C:\photos\a.jpg"))
refused("a web address", ValueError, "web address: download the image", lambda b: load_image("https://a.org/b.jpg"))
refused("a data address", ValueError, "web address", lambda b: load_image("data:image/png;base64,AA"))


def without_permission(bench):
    path = bench.file("a.png", encoded("PNG"))
    path.chmod(0)
    try:
        with no_superuser():
            load_image(path)
    finally:
        path.chmod(0o644)


refused("a file without permission", PermissionError, "denied: '.*a.png'", without_permission)

# --- what is no path

refused(
    "None for an image", TypeError, "path, a PIL image or a numpy array, not a NoneType", lambda b: load_image(None)
)
refused("a number for an image", TypeError, "numpy array, not a int", lambda b: load_image(3))
refused("bytes for an image", TypeError, "numpy array, not a bytes", lambda b: load_image(encoded("PNG")))
refused("bytes as a path", TypeError, "numpy array, not a bytes", lambda b: load_image(b"a.jpg"))
refused("an open file", TypeError, "path, a PIL image", lambda b: load_image(io.BytesIO(encoded("PNG"))))
refused("nested lists", TypeError, "numpy array, not a list", lambda b: load_image(PIXELS.tolist()))
refused("a tensor", TypeError, "not a torch tensor: preprocess", lambda b: load_image(torch.zeros(3, 8, 8)))

# --- arrays that are no images


def of_array(array: np.ndarray):
    return lambda bench: load_image(bench.watch(array))


refused("NaN in an array", ValueError, "NaN or infinite", of_array(np.full((4, 4), np.nan)))
refused("infinity in an array", ValueError, "NaN or infinite", of_array(np.full((4, 4, 3), -np.inf, np.float32)))
refused(
    "floats up to 255",
    ValueError,
    r"lie in \[0,1\], it goes from 0 to 255",
    of_array(np.linspace(0, 255, 16).reshape(4, 4)),
)
refused(
    "floats below zero",
    ValueError,
    r"lie in \[0,1\], it goes from -1 to 1",
    of_array(np.linspace(-1, 1, 16).reshape(4, 4)),
)
refused("64-bit integers", ValueError, "int64: give uint8", of_array(PIXELS.astype(np.int64)))
refused("signed bytes", ValueError, "int8: give uint8", of_array((PIXELS // 2).astype(np.int8)))
refused("a bool array", ValueError, "bool: give uint8", of_array(PIXELS > 100))
refused("a complex array", ValueError, "complex128: give uint8", of_array(PIXELS / 255 + 0j))
refused("an array of objects", ValueError, "object: give uint8", of_array(PIXELS.astype(object)))
refused(
    "channels first", ValueError, r"\(3, 20, 30\).*channels first\? np.moveaxis", of_array(PIXELS.transpose(2, 0, 1))
)
refused("five channels", ValueError, "1 to 4 channels", of_array(np.zeros((4, 4, 5), np.uint8)))
refused("a batch of images", ValueError, r"\(1, 20, 30, 3\) is no image", of_array(PIXELS[None]))
refused("a row of numbers", ValueError, r"\(5,\) is no image", of_array(np.zeros(5, np.uint8)))
refused("a single number in an array", ValueError, r"\(\) is no image", of_array(np.array(5, np.uint8)))
refused("an array without rows", ValueError, "no pixels", of_array(np.zeros((0, 4, 3), np.uint8)))

# --- PIL images

refused("a PIL image without pixels", ValueError, "no pixels", lambda b: load_image(Image.new("RGB", (0, 4))))
refused("NaN in a PIL image", ValueError, "NaN", lambda b: load_image(Image.fromarray(np.full((2, 2), np.nan, "f"))))
refused(
    "a PIL image out of every range", ValueError, "do not fit any", lambda b: load_image(Image.new("I", (2, 2), 70000))
)


def closed(bench):
    with Image.open(bench.file("a.png", encoded("PNG"))) as image:
        pass
    return image


refused("a PIL image that was closed", ValueError, "cannot be decoded.*closed", lambda b: load_image(closed(b)))
refused(
    "a strip",
    ValueError,
    "1×5000 pixels is too long a strip: crop it",
    lambda b: view(Image.new("L", (1, 5000)), b.net),
)

# --- unusual images: the network's input is that of the plain picture


def seen(kind: str, source, plain=PICTURE) -> None:
    """`source` (an image, an array, or a function of the bench) is preprocessed like the plain picture."""
    made = source if callable(source) else lambda bench: bench.watch(source)
    answered(kind, lambda b: preprocess(made(b), b.net), lambda b: preprocess(plain, b.net))


def saved(name: str, content: bytes):
    return lambda bench: bench.file(name, content)


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by 90 degrees
ALPHA = Image.merge("RGBA", (*PICTURE.split(), GREY))
ON_WHITE = Image.composite(PICTURE, Image.new("RGB", PICTURE.size, "white"), GREY)
PALETTE = PICTURE.quantize(16)
CLEAR = Image.new("P", (6, 6), 1)
CLEAR.putpalette([9, 9, 9, 200, 0, 0])
CLEAR.info["transparency"] = 1
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("Comment", "a" * 999)

seen("a file", saved("a.png", encoded("PNG")))
seen("a path as text", lambda b: str(b.file("a.png", encoded("PNG"))))
seen("an ending of another kind", saved("a.jpg", encoded("PNG")))
seen("an ending in capitals", saved("A.PNG", encoded("PNG")))
seen("no ending", saved("photo", encoded("PNG")))
seen("letters beyond ASCII and spaces in a name", saved("ảnh số một.png", encoded("PNG")))
seen("garbage behind the end of a file", saved("a.png", encoded("PNG") + b"\0garbage" * 99))
seen("an interlaced or optimised file", saved("a.png", encoded("PNG", optimize=True)))
seen("long metadata", saved("a.png", encoded("PNG", pnginfo=TEXT)))
seen("a progressive JPEG", saved("a.jpg", encoded("JPEG", progressive=True)), Image.open(io.BytesIO(encoded("JPEG"))))
seen(
    "an animation", saved("a.gif", encoded("GIF", GREY, save_all=True, append_images=[Image.new("L", GREY.size)])), GREY
)
seen("CMYK", saved("a.tif", encoded("TIFF", PICTURE.convert("CMYK"))), PICTURE.convert("CMYK").convert("RGB"))
seen("greyscale", saved("a.png", encoded("PNG", GREY)), GREY.convert("RGB"))
seen("one bit", GREY.convert("1"), GREY.convert("1").convert("RGB"))
seen("16 bit", Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), GREY)
seen("integers of 32 bit", Image.fromarray(np.asarray(GREY).astype(np.int32)), GREY)
seen("floats in a PIL image", Image.fromarray(np.asarray(GREY) / np.float32(255)), GREY)
seen("a palette", PALETTE, PALETTE.convert("RGB"))
seen("a palette with alpha", CLEAR, Image.new("RGB", (6, 6), "white"))
seen("alpha", ALPHA, ON_WHITE)
seen("grey with alpha", Image.merge("LA", (GREY, Image.new("L", GREY.size, 255))), GREY)
seen(
    "EXIF that turns the image",
    saved("a.png", encoded("PNG", exif=TURNED)),
    PICTURE.transpose(Image.Transpose.ROTATE_270),
)
seen(
    "damaged EXIF",
    saved("a.jpg", encoded("JPEG", quality=95, exif=b"Exif\0\0II*\0garbage")),
    Image.open(io.BytesIO(encoded("JPEG", quality=95))),
)
seen("an array", PIXELS)
seen("an array that is read only", np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape))
seen("an array in Fortran's order", np.asfortranarray(PIXELS))
seen("an array seen backwards", np.ascontiguousarray(PIXELS[::-1, ::-1])[::-1, ::-1])
seen("an array of 16 bit in the other order of bytes", PIXELS.astype(">u2") * 257)
seen("an array of floats in [0,1]", PIXELS / 255)
seen(
    "an array of half precision",
    np.round(PIXELS / 255).astype(np.float16),
    Image.fromarray(np.uint8(np.round(PIXELS / 255) * 255)),
)
seen("one pixel", Image.new("RGB", (1, 1), (9, 99, 199)), Image.new("RGB", (50, 50), (9, 99, 199)))
seen("a long and thin image", Image.new("RGB", (99, 1), (9, 99, 199)), Image.new("RGB", (50, 50), (9, 99, 199)))
answered(
    "a photo without contrast",
    lambda b: (
        explain(b.net, Image.new("RGB", (50, 50), (128, 102, 76)), 0, "grad_cam").heatmap().isfinite().all().item()
    ),
    lambda b: True,
)

# --- the photos that come with the project

refused(
    "a photo that is not there",
    ValueError,
    "no photo has the name 'dogg'; there are 76, for example dog",
    lambda b: load_photo("dogg"),
)
refused("a photo without a name", ValueError, "no photo has the name ''", lambda b: load_photo(""))
refused("None for a photo's name", TypeError, "by its name, not by a NoneType", lambda b: load_photo(None))
refused(
    "several names for one photo",
    TypeError,
    "not by a list: load_photos gives several",
    lambda b: load_photo(["dog", "cat"]),
)
refused("a number for a photo's name", TypeError, "a photo's name is a text.*not 3", lambda b: load_photos(3))
refused(
    "a licence that no photo has", ValueError, "no photo has the licence 'MIT'", lambda b: load_photos(licence="MIT")
)
refused("a number for a label", TypeError, "a photo's label is a text", lambda b: load_photos(label=207))
answered(
    "a list of labels",
    lambda b: [p.name for p in load_photos(label=["tabby"])],
    lambda b: [p.name for p in load_photos(label="tabby")],
)

# --- folders

refused(
    "a folder that is not there",
    ValueError,
    "nowhere is not a folder of images",
    lambda b: image_files(b.folder / "nowhere"),
)
refused(
    "a file as a folder",
    ValueError,
    "not a folder of images: give one, or load_image",
    lambda b: image_files(b.file("a.png", b"")),
)
refused("None for a folder", TypeError, "a folder must be a path, not a NoneType", lambda b: image_files(None))
refused(
    "a folder without images",
    ValueError,
    "no image in .*known endings",
    lambda b: (b.file("a.txt", b""), image_files(b.folder)),
)
refused(
    "a folder with hidden images alone",
    ValueError,
    "no image in",
    lambda b: (b.file(".a.png", b""), image_files(b.folder)),
)
answered(
    "images in subfolders",
    lambda b: (b.file("c/d/A.JPG", b""), image_files(b.folder))[1],
    lambda b: [b.folder / "c/d/A.JPG"],
)

# --- mosaics

FOUR = [PICTURE] * 4
refused("too few images for a mosaic", ValueError, "2 x 2 cells take 4 images, got 3", lambda b: mosaic(FOUR[:3]))
refused(
    "a mosaic without rows",
    ValueError,
    "rows must be a whole number of at least 1, not 0",
    lambda b: mosaic(FOUR, rows=0),
)
refused(
    "rows that are no whole number",
    ValueError,
    "rows must be a whole number of at least 1, not 1.5",
    lambda b: mosaic(FOUR, rows=1.5),
)
refused("a mosaic of fewer pixels than cells", ValueError, "one pixel per cell", lambda b: mosaic(FOUR, size=1))
refused("one path for a mosaic", ValueError, "take 4 images, got 1", lambda b: mosaic("a.jpg"))
refused("no image for a mosaic", TypeError, "images must be a sequence, not a NoneType", lambda b: mosaic(None))
refused("a broken image in a mosaic", ValueError, "is empty", lambda b: mosaic([*FOUR[:3], b.file("a.jpg", b"")]))
refused("more cells than pixels", ValueError, "at least one pixel each, got 1 x 9", lambda b: mosaic_masks(2, 2, 1, 9))
