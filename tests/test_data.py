"""Reading image files of every kind (written to tmp_path, expected values by hand), the photo set, mosaics."""

import csv
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from cam_utils import data, paths
from cam_utils.data import Photo, load_image, load_photo, load_photos, mosaic, mosaic_masks

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
# the four corners of a 2 x 3 picture, all different, so that each of the eight orientations shows
UPRIGHT = np.array([[RED, GREEN], [BLUE, WHITE], [(9, 9, 9), (99, 99, 99)]], np.uint8)
# EXIF 2.32, tag 274: what has to be done to the upright picture to get the stored one
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def pixels(source):
    image = load_image(source)
    assert image.mode == "RGB" and type(image) is Image.Image
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
def test_exif_orientation(tmp_path, orientation, suffix):
    block = 8 if suffix == ".jpg" else 1  # JPEG blurs within blocks of 8
    stored = Image.fromarray(STORED[orientation].repeat(block, 0).repeat(block, 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    stored.save(tmp_path / f"a{suffix}", exif=exif, **options)
    result = pixels(tmp_path / f"a{suffix}")
    expected = UPRIGHT.repeat(block, 0).repeat(block, 1)
    assert result.shape == expected.shape
    assert abs(result - expected).max() <= 3
    with Image.open(tmp_path / f"a{suffix}") as image:  # the same by way of a PIL image, and not twice
        assert np.array_equal(pixels(image), result)
        assert np.array_equal(pixels(load_image(image)), result)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_set_in_memory_or_damaged():
    image = Image.fromarray(STORED[6])
    image.getexif()[0x0112] = 6
    assert np.array_equal(pixels(image), UPRIGHT)
    image = Image.fromarray(UPRIGHT)
    image.info["exif"] = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    assert np.array_equal(pixels(image), UPRIGHT)
    image.info["exif"] = b"nonsense"
    assert np.array_equal(pixels(image), UPRIGHT)


def test_orientation_also_for_16_bit(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[0, 257, 514]], np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert pixels(tmp_path / "a.png")[:, 0, 0].tolist() == [0, 1, 2]


def test_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=0)  # one index
    image.save(tmp_path / "c.png", transparency=bytes([255, 51]))  # alpha of each index: 51/255 = 1/5
    assert pixels(tmp_path / "a.png").tolist() == [[[*RED], [*BLUE]]]
    assert pixels(tmp_path / "b.png").tolist() == [[[*WHITE], [*BLUE]]]
    assert pixels(tmp_path / "c.png").tolist() == [[[*RED], [204, 204, 255]]]


def test_alpha_is_composited_on_white(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[[100, 255], [100, 0], [0, 51]]], np.uint8)).save(tmp_path / "b.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[*RED], [*WHITE], [204, 204, 204]]]
    assert pixels(tmp_path / "b.png").tolist() == [[[100] * 3, [*WHITE], [204] * 3]]
    for mode in ("RGBa", "La"):  # alpha premultiplied
        image = Image.open(tmp_path / "a.png").convert("LA" if mode == "La" else "RGBA").convert(mode)
        assert pixels(image)[0, 1:].tolist() == [[*WHITE], [204] * 3]


@pytest.mark.parametrize("value, kind", [((255, 0, 0), "RGB"), (7, "L"), (7 * 257, "I;16")])
def test_one_colour_declared_transparent(tmp_path, value, kind):
    image = Image.new(kind, (2, 1), value)
    image.putpixel((1, 0), (1, 2, 3) if kind == "RGB" else 0)
    image.save(tmp_path / "a.png", transparency=value)
    assert pixels(tmp_path / "a.png").tolist() == [[[*WHITE], [1, 2, 3] if kind == "RGB" else [0] * 3]]


def test_greyscale_and_bilevel(tmp_path):
    Image.fromarray(np.array([[0, 127, 255]], np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "b.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[v] * 3 for v in (0, 127, 255)]]
    assert pixels(tmp_path / "b.png").tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    values = np.array([[0, 257, 128 * 257, 200 * 257 + 100, 65535]], np.uint16)
    if suffix == ".pgm":  # Pillow opens these in mode I
        path.write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert pixels(path)[0, :, 0].tolist() == [0, 1, 128, 200, 255]


@pytest.mark.parametrize(
    "dtype, top",
    [(np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 255), (np.float32, 65535)],
)
def test_modes_without_a_stated_range(tmp_path, dtype, top):
    image = Image.fromarray(np.array([[0, 0.2 * top, top]], dtype))
    image.save(tmp_path / "a.tif")
    for source in (image, tmp_path / "a.tif"):
        assert pixels(source)[0, :, 1].tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    "values, cause",
    [([-1, 3], "from -1"), ([0, 70000], "to 70000"), ([0.0, np.nan], "NaN"), ([0.5, np.inf], "infinite")],
)
def test_values_outside_of_every_range(tmp_path, values, cause):
    dtype = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "strange.tif")
    with pytest.raises(ValueError, match=f"strange.tif.*{cause}"):
        load_image(tmp_path / "strange.tif")


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    image.save(tmp_path / "a.tif")
    image.save(tmp_path / "a.jpg", quality=100)  # Pillow writes them as Adobe does: inverted, with an Adobe marker
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert abs(pixels(tmp_path / "a.tif") - RED).max() == 0
    assert abs(pixels(tmp_path / "a.jpg") - RED).max() <= 3
    black = Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    black.save(tmp_path / "b.jpg")
    assert pixels(tmp_path / "b.jpg").max() <= 3


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_models(mode):
    assert abs(pixels(Image.new("RGB", (2, 2), RED).convert(mode)) - RED).max() <= 2


def test_lab():
    red = (
        136,
        208,
        195,
    )  # CIELAB of sRGB red: L* 53.2 of 100, a* 80 and b* 67, as 255 L*/100, a* + 128, b* + 128
    assert abs(pixels(Image.new("LAB", (1, 1), red)) - RED).max() <= 12


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(tmp_path / f"a{suffix}") == RED).all()
    with Image.open(
        tmp_path / f"a{suffix}"
    ) as image:  # an opened file: the frame that the caller has sought, left there
        assert image.n_frames == 3
        image.seek(2)
        assert (pixels(image) == BLUE).all() and image.tell() == 2


def test_tiny_and_large(tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[*RED]]]
    Image.new("L", (8000, 5000), 77).save(tmp_path / "b.jpg")
    image = load_image(tmp_path / "b.jpg")
    assert image.size == (8000, 5000) and image.getpixel((7999, 4999)) == (77, 77, 77)


@pytest.mark.parametrize("as_error", [False, True])
def test_above_the_limit_of_pixels(tmp_path, monkeypatch, as_error):
    Image.new("L", (50, 50)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500 if as_error else 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if as_error else "default")
        with pytest.raises(ValueError, match="bomb.png.*2500 pixels.*MAX_IMAGE_PIXELS"):
            load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    "dtype, top", [(np.uint8, 255), (np.uint16, 65535), (np.float16, 1), (np.float32, 1), (np.float64, 1)]
)
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_arrays(dtype, top, channels):
    array = np.zeros((2, 3, *channels), dtype)
    array[0, 1], array[1, 2] = top, round(top * 0.2) if top > 1 else 0.2
    result = pixels(array)
    assert result.shape == (2, 3, 3)
    assert result[0, 1].tolist() == [255] * 3 and result[1, 2].tolist() == [51] * 3 and result[0, 0].tolist() == [0] * 3


def test_arrays_with_alpha_and_any_layout():
    assert pixels(np.array([[[0, 51]]], np.uint8)).tolist() == [[[204] * 3]]
    assert pixels(np.array([[[1.0, 0, 0, 0.2]]])).tolist() == [[[255, 204, 204]]]
    flipped = np.asfortranarray(UPRIGHT)[::-1, ::-1]
    assert np.array_equal(pixels(flipped), flipped)
    assert np.array_equal(pixels(np.full((1, 1), 257, ">u2")), [[[1] * 3]])


@pytest.mark.parametrize(
    "array, cause",
    [
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), np.inf), "infinite"),
        (np.array([[0.5, 1.5]]), r"\[0,1\].*from 0.5 to 1.5"),
        (np.array([[-0.25, 1]]), "from -0.25 to 1"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((2, 2), bool), "bool"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\).*channels first"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"\(1, 8, 8, 3\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_no_images(array, cause):
    with pytest.raises(ValueError, match=cause):
        load_image(array)


def test_result_shares_nothing_with_the_source(tmp_path):
    image = Image.new("RGB", (2, 2), RED)
    image.info["comment"] = ["mine"]
    result = load_image(image)
    result.putpixel((0, 0), BLUE)
    assert image.getpixel((0, 0)) == RED and not result.info and not dict(result.getexif())
    array = np.zeros((2, 2, 3), np.uint8)
    result = load_image(array)
    array[:] = 255
    assert np.asarray(result).max() == 0
    result.putpixel((0, 0), BLUE)
    assert array.min() == 255


def test_paths_of_any_kind(tmp_path, monkeypatch):
    path = tmp_path / "ảnh một.png"
    Image.fromarray(UPRIGHT).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (path, str(path), "ảnh một.png", "~/ảnh một.png"):
        assert np.array_equal(pixels(source), UPRIGHT)
    path.rename(tmp_path / "wrong.jpg")  # the content counts, not the suffix
    assert np.array_equal(pixels("wrong.jpg"), UPRIGHT)


def broken_files(folder):
    """name -> (error, cause) of files that cannot be read."""
    (folder / "folder.png").mkdir()
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<!doctype html><p>404</p>")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for suffix in ("jpg", "png", "webp", "gif", "tif"):
        noise.save(folder / f"whole.{suffix}")
        content = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (folder / "header.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:40])
    png = bytearray((folder / "whole.png").read_bytes())
    png[60:70] = bytes(10)
    (folder / "damaged.png").write_bytes(png)
    os.mkfifo(folder / "pipe.jpg")
    return {
        "missing.jpg": (FileNotFoundError, "no such"),
        "folder.png": (IsADirectoryError, "folder, not"),
        "empty.jpg": (ValueError, "empty"),
        "page.jpg": (ValueError, "no image .*<!doctype"),
        "header.jpg": (ValueError, "no image|truncated"),
        "damaged.png": (ValueError, "damaged"),
        "pipe.jpg": (ValueError, "not a regular file"),
        **{f"cut.{s}": (ValueError, "truncated or damaged|no image") for s in ("jpg", "png", "webp", "gif", "tif")},
    }


def test_broken_files_are_named_with_the_cause(tmp_path):
    for name, (error, cause) in broken_files(tmp_path).items():
        for source in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(error, match=f"(?s){cause}") as caught:
                load_image(source)
            assert name in str(caught.value)


def test_truncated_file_opened_by_the_caller(tmp_path):
    broken_files(tmp_path)
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(ValueError, match="PIL image.*truncated"):
        load_image(image)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(PermissionError, match="secret.png"):
        load_image(tmp_path / "secret.png")


@pytest.mark.parametrize(
    "address",
    ["https://example.org/dog.jpg", "http://a/b", "file:///a.jpg", "s3://b/k", "data:image/png;base64,AA"],
)
def test_web_address(address):
    with pytest.raises(ValueError, match="download"):
        load_image(address)


def test_null_byte_and_overlong_names():
    with pytest.raises(ValueError, match="not a path"):
        load_image("a\0b.jpg")
    with pytest.raises(OSError, match="aaaa"):
        load_image("a" * 5000)


@pytest.mark.parametrize("source", [None, 3, b"dog.jpg", [[0, 1]], open])
def test_wrong_types(source):
    with pytest.raises(TypeError, match="path, a PIL image or a numpy array"):
        load_image(source)


def test_tensor_is_refused_with_advice():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="path, a PIL image or a numpy array, not a torch tensor: preprocess"):
        load_image(torch.zeros(3, 8, 8))


def test_image_without_pixels():
    with pytest.raises(ValueError, match="no pixels"):
        load_image(Image.new("RGB", (0, 4)))


# --- the photo set


def rows():
    with (paths.PHOTOS / "photos.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_photos_and_table_agree():
    files = {path.name for path in paths.PHOTOS.iterdir()} - {"photos.csv", "README.md"}
    assert files == {row["file"] for row in rows()}
    assert len(rows()) == len(files) == len(load_photos()) == 76


def test_attribution_is_complete():
    for photo in load_photos():
        assert photo.licence in {"Public-Domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-SA-4.0"}
        assert photo.author.strip()
        assert photo.source.startswith("https://") or photo.name == "screwdriver"
        assert 0 <= photo.target < 1000 and photo.label.strip()
    readme = (paths.PHOTOS / "README.md").read_text(encoding="utf-8")
    assert "screwdriver.jpg" in readme and "not MIT" in readme
    for licence in {photo.licence for photo in load_photos()}:
        assert licence in readme


def test_every_photo_can_be_read():
    for photo in load_photos():
        assert photo.image.mode == "RGB" and 64 <= max(photo.image.size) <= 448


def test_load_photos_filters():
    photos = load_photos()
    assert [photo.name for photo in photos] == sorted(photo.name for photo in photos)
    dog = load_photo("dog")
    assert dog == load_photos("dog.jpg")[0] and isinstance(dog, Photo)
    assert (dog.target, dog.label, dog.top1_right, dog.licence) == (
        235,
        "German shepherd",
        True,
        "Public-Domain",
    )
    assert [photo.name for photo in load_photos(["owl", "dog", "dog"])] == ["dog", "owl"]
    assert {photo.name for photo in load_photos(label="dam")} == {"dam_1", "dam_3", "dam_4"}
    assert {photo.name for photo in load_photos(licence="CC-BY-2.0")} == {"bee", "kitten"}
    assert len(load_photos(top1_right=True)) + len(load_photos(top1_right=False)) == 76
    assert load_photos([]) == [] and load_photos("dog", top1_right=False) == []
    assert load_photos("dog", label="dam") == []


def test_unknown_names_suggest_near_ones():
    with pytest.raises(ValueError, match="'dgo'.*dog"):
        load_photo("dgo")
    with pytest.raises(ValueError, match="'hamer_1'.*hammer_1"):
        load_photos(["dog", "hamer_1"])
    with pytest.raises(ValueError, match="'German shepard'.*German shepherd"):
        load_photos(label="German shepard")
    with pytest.raises(ValueError, match="'CC0'.*CC0-1.0"):
        load_photos(licence="CC0")
    with pytest.raises(ValueError, match="there are 76"):
        load_photo("")
    with pytest.raises(ValueError, match="label ''"):
        load_photos(label="")


# --- mosaics


def test_mosaic_cells_are_the_images_in_reading_order():
    colours = [RED, GREEN, BLUE, WHITE, (9, 9, 9), (99, 99, 99)]
    images = [Image.new("RGB", (30 + 10 * i, 40), colour) for i, colour in enumerate(colours)]
    for rows_, columns, size in [(2, 3, 60), (3, 2, 61), (1, 6, 60), (2, 2, 448)]:
        picture = np.asarray(mosaic(images[: rows_ * columns], rows_, columns, size))
        assert max(picture.shape[:2]) == size
        masks = mosaic_masks(rows_, columns, *picture.shape[:2])
        for colour, mask in zip(colours, masks, strict=False):
            assert (picture[mask] == colour).all()


def test_mosaic_crops_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = RED
    assert (np.asarray(mosaic([wide], 1, 1, 20)) == RED).all()
    assert (np.asarray(mosaic([wide.transpose(1, 0, 2)], 1, 1, 20)) == RED).all()
    image = load_photo("dog").image
    left, top = (image.width - image.height) // 2, 0
    square = image.crop((left, top, left + image.height, image.height))
    result = np.asarray(mosaic([image], 1, 1, 100)).astype(int)
    assert abs(result - np.asarray(square.resize((100, 100), Image.Resampling.BICUBIC))).mean() < 2


def test_mosaic_masks_partition_any_resolution():
    for h, w in [(2, 2), (7, 7), (14, 14), (5, 9), (224, 240)]:
        masks = mosaic_masks(2, 2, h, w)
        assert masks.shape == (4, h, w) and masks.dtype == bool
        assert (masks.sum(0) == 1).all()
    assert mosaic_masks(2, 2, 14, 14).sum((1, 2)).tolist() == [49] * 4
    assert mosaic_masks(1, 2, 1, 4)[:, 0].tolist() == [[True, True, False, False], [False, False, True, True]]
    assert (
        mosaic_masks(1, 2, 1, 7)[0, 0].sum() == 4
    )  # the centre of the middle pixel lies on the border: the earlier cell


def test_mosaic_errors():
    with pytest.raises(ValueError, match="take 4 images, got 3"):
        mosaic([UPRIGHT] * 3)
    with pytest.raises(ValueError, match="at least"):
        mosaic([], 0, 2)
    with pytest.raises(ValueError, match="at least"):
        mosaic([UPRIGHT] * 4, size=1)
    with pytest.raises(ValueError, match="at least one pixel"):
        mosaic_masks(2, 2, 1, 7)


def test_everything_public_is_exported():
    assert all(hasattr(data, name) for name in data.__all__)
