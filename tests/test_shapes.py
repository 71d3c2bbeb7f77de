"""The generated data set: determinism, masks against closed-form areas, the watermark, checked arguments."""

import hashlib
import math

import numpy as np
import pytest

from cam_utils import shapes
from cam_utils.data import Shapes, make_shapes
from cam_utils.shapes import CLASS_NAMES, DISTRACTORS, coverage, watermark_glyph

CRESCENT_LENS = (  # area common to the unit circle and the one of radius 0.8 at distance 0.5
    math.acos((0.25 + 1 - 0.64) / 1.0)
    + 0.64 * math.acos((0.25 + 0.64 - 1) / 0.8)
    - 0.5 * math.sqrt((-0.5 + 1 + 0.8) * (0.5 + 1 - 0.8) * (0.5 - 1 + 0.8) * (0.5 + 1 + 0.8))
)
AREA = {  # of an object with circumradius 1
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 5 * 0.42 * math.sin(math.pi / 5),
    "cross": 4 * 0.6 * math.sqrt(1 - 0.3**2) - 0.6**2,
    "ring": math.pi * (1 - 0.55**2),
    "bar": 4 * 0.97 * 0.22,
    "crescent": math.pi - CRESCENT_LENS,
    "dots": 3 * math.pi * 0.32**2,
}


@pytest.fixture(scope="module")
def data():
    return make_shapes(150, seed=7, watermark=0.8)


def digest(data):
    arrays = (data.images, data.labels, data.instances, data.watermark_masks)
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def test_shapes_and_types(data):
    assert isinstance(data, Shapes) and len(data) == 150
    assert data.images.shape == (150, 3, 64, 64) and data.images.dtype == np.float32
    assert data.images.min() >= 0 and data.images.max() <= 1
    assert np.array_equal(np.float32(np.rint(data.images * 255) / 255), data.images)
    assert data.labels.shape == (150,) and data.labels.dtype == np.int64
    assert data.instances.shape == (150, 64, 64) and data.instances.dtype == np.uint8
    assert data.masks.shape == data.watermark_masks.shape == (150, 64, 64)
    assert data.masks.dtype == data.watermark_masks.dtype == bool
    assert np.array_equal(data.masks, data.instances == 1)
    assert data.class_names == CLASS_NAMES and not set(CLASS_NAMES) & set(DISTRACTORS)


def test_same_arguments_same_bytes(data):
    assert digest(make_shapes(150, seed=7, watermark=0.8)) == digest(data)
    assert digest(make_shapes(150, seed=8, watermark=0.8)) != digest(data)
    np.random.seed(0)  # noqa: NPY002  the global generator plays no part
    assert digest(make_shapes(20, seed=7)) == digest(make_shapes(np.int64(20), seed=np.uint8(7)))


def test_an_image_does_not_depend_on_how_many_are_made(data):
    few = make_shapes(5, seed=7, watermark=0.8)
    for name in ("images", "labels", "instances", "watermark_masks"):
        assert np.array_equal(getattr(few, name), getattr(data, name)[:5])
    assert len({image.tobytes() for image in data.images}) == 150


@pytest.mark.parametrize("kind", AREA)
@pytest.mark.parametrize("angle", [0.1, 0.4, 2.0])
def test_area_is_that_of_geometry(kind, angle):
    part = coverage(kind, 256, (128.3, 127.6), 90.0, angle)
    assert part.dtype == np.float32 and part.min() == 0 and part.max() == 1
    area = AREA[kind] * 90**2
    assert part.sum() == pytest.approx(area, rel=0.002)
    assert (part >= 0.5).sum() == pytest.approx(area, rel=0.01)  # rounding along straight edges
    small = coverage(kind, 64, (32.3, 31.6), 12.0, angle)  # at the size in use
    assert small.sum() == pytest.approx(AREA[kind] * 12**2, rel=0.03)


@pytest.mark.parametrize("kind", CLASS_NAMES + DISTRACTORS)
def test_objects_fill_their_circle_and_stay_in_it(kind):
    y, x = np.mgrid[:128, :128] + 0.5
    for angle in (0.0, 1.0):
        distance = np.hypot(x - 64, y - 64)[coverage(kind, 128, (64, 64), 50.0, angle) > 0]
        assert 50 * 0.95 < distance.max() < 50 + 0.8


def test_a_turn_turns_the_object():
    upright, turned = coverage("bar", 64, (32, 32), 20), coverage("bar", 64, (32, 32), 20, math.pi / 2)
    assert np.array_equal(upright.T, turned) and not np.array_equal(upright, turned)
    assert upright.any(0).sum() > upright.any(1).sum()  # the bar lies, so that x runs along the columns


def test_unknown_kind():
    with pytest.raises(ValueError, match="'blob'.*circle"):
        coverage("blob", 64, (32, 32), 10)


def test_masks_are_where_the_object_is(monkeypatch):
    """Another colour for the objects changes all of their pixels, and nothing beyond a rim of one pixel."""
    monkeypatch.setattr(shapes, "_object_colour", lambda generator, *_: np.ones(3, np.float32))
    white = make_shapes(40, seed=3)
    monkeypatch.setattr(shapes, "_object_colour", lambda generator, *_: np.zeros(3, np.float32))
    black = make_shapes(40, seed=3)
    assert np.array_equal(white.instances, black.instances)
    changed = (white.images != black.images).any(1)
    objects = white.instances > 0
    assert changed[objects].all()
    padded = np.pad(objects, ((0, 0), (1, 1), (1, 1)))
    rim = np.any([padded[:, i : i + 64, j : j + 64] for i in range(3) for j in range(3)], 0)
    # a sharp tip thinner than half a pixel belongs to no mask; it may reach two pixels further
    assert (changed & ~rim).sum() <= 0.002 * changed.sum()


def test_the_object_that_gives_the_class_is_whole(data):
    for i in range(len(data)):
        pixels = data.masks[i].sum()
        area = AREA[CLASS_NAMES[data.labels[i]]]
        radius = math.sqrt(pixels / area)  # if the mask were cut, this would fall below the smallest radius
        assert 0.05 * 64 < radius < shapes.RADIUS[1] * 64 * 1.06
        rows, columns = np.nonzero(data.masks[i])
        widest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert widest <= 2 * radius + 2


@pytest.mark.parametrize("objects", [(1, 1), (2, 4), (3, 3), (8, 8)])
def test_number_of_objects(objects):
    counts = [len(np.unique(instances)) - 1 for instances in make_shapes(60, objects=objects).instances]
    assert (min(counts), max(counts)) == objects


def test_nothing_but_the_kind_tells_the_class():
    data = make_shapes(700, seed=11)
    assert np.bincount(data.labels, minlength=6).min() > 75  # 117 expected, standard deviation 10
    means = data.images.mean((2, 3))
    for label in range(6):  # mean colours of each class within five standard errors of all
        error = means.std(0) / math.sqrt((data.labels == label).sum())
        assert (abs(means[data.labels == label].mean(0) - means.mean(0)) < 5 * error).all()
    centres = np.array([[np.nonzero(mask)[k].mean() for k in (0, 1)] for mask in data.masks])
    for label in range(6):
        error = centres.std(0) / math.sqrt((data.labels == label).sum())
        assert (abs(centres[data.labels == label].mean(0) - centres.mean(0)) < 5 * error).all()


def test_watermark_changes_its_pixels_only():
    plain, marked = make_shapes(80, seed=5), make_shapes(80, seed=5, watermark=1.0)
    assert not plain.watermark_masks.any()
    assert np.array_equal(plain.labels, marked.labels) and np.array_equal(plain.instances, marked.instances)
    present = marked.watermark_masks.any((1, 2))
    assert np.array_equal(present, marked.labels == 0)  # p = 1: in class 0 and nowhere else
    changed = (plain.images != marked.images).any(1)
    assert not (changed & ~marked.watermark_masks).any()
    assert not (marked.watermark_masks & (marked.instances > 0)).any()  # no object under it
    (rows, columns), glyph = watermark_glyph(64)
    assert (marked.images[present][:, :, rows, columns] == glyph).all()
    assert marked.watermark_masks[present].sum((1, 2)).tolist() == [glyph.size] * present.sum()
    assert rows.start > 32 and columns.stop < 32  # bottom left


@pytest.mark.parametrize("p", [0.0, 0.5, 0.8, 1])
def test_watermark_probabilities(p):
    data = make_shapes(500, size=32, seed=2, watermark=p)
    present = data.watermark_masks.any((1, 2))
    for chosen, expected in ((data.labels == 0, p), (data.labels != 0, 1 - p)):
        error = math.sqrt(expected * (1 - expected) / chosen.sum())
        assert abs(present[chosen].mean() - expected) <= 4 * error


@pytest.mark.parametrize("size", [32, 33, 96, 224])
def test_sizes(size):
    data = make_shapes(12, size=size, watermark=0.5, objects=(4, 8))
    assert data.images.shape == (12, 3, size, size)
    assert data.masks.any((1, 2)).all() and data.watermark_masks.any()
    assert not (data.watermark_masks & (data.instances > 0)).any()


@pytest.mark.parametrize(
    "arguments, error, cause",
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, "n must be an integer"),
        ({"n": True}, TypeError, "n must be an integer"),
        ({"size": 16}, ValueError, "size must be in 32..2048"),
        ({"size": (64, 64)}, TypeError, "size must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": None}, TypeError, "seed must be an integer"),
        ({"objects": 3}, TypeError, "objects must be a pair"),
        ({"objects": (1, 2, 3)}, TypeError, "objects must be a pair"),
        ({"objects": (0, 2)}, ValueError, r"objects\[0\] must be in 1..8"),
        ({"objects": (2, 9)}, ValueError, r"objects\[1\] must be in 1..8"),
        ({"objects": (3, 2)}, ValueError, "least <= most"),
        ({"watermark": 1.5}, ValueError, r"probability in \[0,1\], got 1.5"),
        ({"watermark": float("nan")}, ValueError, "probability"),
        ({"watermark": True}, TypeError, "probability"),
        ({"watermark": "0.5"}, TypeError, "probability"),
    ],
)
def test_arguments_are_checked(arguments, error, cause):
    with pytest.raises(error, match=cause):
        make_shapes(**{"n": 1, **arguments})
