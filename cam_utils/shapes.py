"""Shapes: generated images whose right explanation is known, for networks that are trained on the spot.

Every image shows one object that gives the class (a circle, square, triangle, star, cross or ring) and
distractors of other kinds (bar, crescent, dots, chevron) on a textured background. Colours, sizes, rotations,
positions and textures say nothing of the class.
"""

import math
import operator
from dataclasses import dataclass

import numpy as np
from PIL import Image

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
DISTRACTORS = ("bar", "crescent", "dots", "chevron")
TEXTURES = ("gradient", "stripes", "checks", "noise")
RADIUS = (0.16, 0.25)  # circumradius of the objects, in widths of the image
TURN = math.pi  # objects are turned by at most this, either way
SUPERSAMPLING = 4  # every pixel is the mean of 4 x 4 samples
GLYPH_ROWS = "........ .######. .#...... .#.####. .#.#..#. .#....#. .######. ........".split()
GLYPH = np.array([[character == "#" for character in row] for row in GLYPH_ROWS])


@dataclass(frozen=True, eq=False)
class Shapes:
    """A generated data set (see `make_shapes`); numpy arrays throughout."""

    images: np.ndarray  # (N,3,H,W) float32 in [0,1], multiples of 1/255
    labels: np.ndarray  # (N,) int64, index into class_names
    instances: np.ndarray  # (N,H,W) uint8: 0 background, 1 the object that gives the class, 2.. distractors
    watermark_masks: np.ndarray  # (N,H,W) bool: the watermark's pixels, all False where it is absent
    class_names: tuple[str, ...] = CLASS_NAMES

    @property
    def masks(self) -> np.ndarray:
        """(N,H,W) bool: the pixels of the object that gives the class."""
        return self.instances == 1

    def __len__(self) -> int:
        return len(self.labels)


def make_shapes(n, *, size=64, seed=0, objects=(2, 4), watermark=None) -> Shapes:
    """Generate `n` images of `size` x `size` pixels; the same arguments give the same bytes.

    Image i depends on (seed, i) alone, not on n: a longer run starts with the shorter one. Labels are drawn
    uniformly, so that classes are balanced on average only.

    objects: (least, most) objects per image within 1..8, the one that gives the class included. Objects lie wholly
        inside the image; the circumscribed circles of two overlap by at most a tenth; the object that gives the
        class is on top. A pixel belongs to the topmost object that covers at least half of it (edges are
        antialiased: a rim of one pixel is a mixture).
    watermark: None, or the probability p in [0,1] that the watermark (a fixed glyph in the bottom left corner, which
        objects always leave free) is present in an image of class 0; in images of the other classes it is present
        with probability 1 - p. So 1 makes it a perfect shortcut to class 0, and 0.5 leaves it independent of the
        class. Nothing else depends on it: the same seed with and without gives images that differ in
        `watermark_masks` only.
    Raises TypeError or ValueError naming the argument. 14 bytes per pixel and image; 1 ms per image of 64 pixels.
    """
    n, size, seed = _integer("n", n, 1), _integer("size", size, 32, 2048), _integer("seed", seed, 0)
    try:
        least, most = objects
    except (TypeError, ValueError):
        raise TypeError(f"objects must be a pair (least, most), got {objects!r}") from None
    least, most = _integer("objects[0]", least, 1, 8), _integer("objects[1]", most, 1, 8)
    if least > most:
        raise ValueError(f"objects must be (least, most) with least <= most, got {objects!r}")
    if watermark is not None:
        number = isinstance(watermark, (int, float, np.floating)) and not isinstance(watermark, bool)
        if not number or not 0 <= watermark <= 1:
            kind = ValueError if number else TypeError
            raise kind(f"watermark must be None or a probability in [0,1], got {watermark!r}")

    images = np.empty((n, 3, size, size), np.float32)
    labels = np.empty(n, np.int64)
    instances = np.zeros((n, size, size), np.uint8)
    present = np.zeros(n, bool)
    for i in range(n):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
        labels[i] = generator.integers(len(CLASS_NAMES))
        chance = generator.random()  # drawn with and without a watermark: the rest of the image must not depend on it
        if watermark is not None:
            present[i] = chance < (watermark if labels[i] == 0 else 1 - watermark)
        images[i], instances[i] = _draw(generator, CLASS_NAMES[labels[i]], size, least, most)
    box, glyph = watermark_glyph(size)
    images[present, :, box[0], box[1]] = glyph
    watermark_masks = np.zeros((n, size, size), bool)
    watermark_masks[present, box[0], box[1]] = True
    return Shapes(images, labels, instances, watermark_masks)


def watermark_glyph(size):
    """((rows, columns) slices of the corner, glyph (h,w) float32 of zeros and ones) at `size` pixels."""
    scale = max(1, round(size / 64))
    glyph = np.kron(GLYPH, np.ones((scale, scale))).astype(np.float32)
    side = len(glyph)
    return (slice(size - scale - side, size - scale), slice(scale, scale + side)), glyph


def coverage(kind, size, centre, radius, angle=0.0):
    """(size,size) float32 in [0,1]: the part of each pixel that an object covers.

    kind: one of CLASS_NAMES or DISTRACTORS; centre (x, y) and circumradius in pixels, angle in radians.
    """
    k = SUPERSAMPLING
    first = [max(0, math.floor(c - radius)) for c in centre]
    last = [min(size, math.ceil(c + radius)) for c in centre]
    x, y = ((np.arange(k * (b - a), dtype=np.float32) + 0.5) / k + a for a, b in zip(first, last, strict=True))
    x, y = (x[None, :] - centre[0]) / radius, (y[:, None] - centre[1]) / radius
    c, s = math.cos(angle), math.sin(angle)
    samples = _inside(kind, c * x + s * y, c * y - s * x)
    height, width = last[1] - first[1], last[0] - first[0]
    part = samples.reshape(height, k, width, k).sum((1, 3), dtype=np.float32) / k**2
    canvas = np.zeros((size, size), np.float32)
    canvas[first[1] : last[1], first[0] : last[0]] = part
    return canvas


def _inside(kind, u, v):
    """Boolean: are the points (u, v) inside the object with circumradius 1? Arrays of one shape."""
    square_radius = u * u + v * v
    match kind:
        case "circle":
            return square_radius < 1
        case "ring":
            return (square_radius < 1) & (square_radius > 0.55**2)
        case "square":
            return np.maximum(abs(u), abs(v)) < math.sqrt(0.5)
        case "triangle":
            return (v < 0.5) & (math.sqrt(3) * abs(u) - v < 1)
        case "star":  # folded into a tenth: the half-plane through a tip (radius 1) and a dent (radius 0.42)
            angle = abs(np.arctan2(u, v))
            angle = abs((angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
            dent_x, dent_y = 0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5)
            return np.sqrt(square_radius) * (dent_y * np.cos(angle) + (1 - dent_x) * np.sin(angle)) < dent_y
        case "cross":
            arm = math.sqrt(1 - 0.3**2)
            return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < arm)
        case "bar":
            return (abs(u) < 0.97) & (abs(v) < 0.22)
        case "crescent":
            return (square_radius < 1) & ((u - 0.5) ** 2 + v * v > 0.8**2)
        case "dots":
            return np.minimum((abs(u) - 0.58) ** 2 + (v - 0.35) ** 2, u * u + (v + 0.66) ** 2) < 0.32**2
        case "chevron":
            return (square_radius < 1) & (abs(v - abs(u) + 0.4) < 0.3)
    raise ValueError(f"unknown kind {kind!r}; known: {', '.join(CLASS_NAMES + DISTRACTORS)}")


def _draw(generator, kind, size, least, most):
    """One image (3,size,size) in [0,1] rounded to 8 bit and its instances (size,size)."""
    (first, second), weight = _background_colours(generator), _texture(generator, size)
    image = first[:, None, None] + (second - first)[:, None, None] * weight
    count = generator.integers(least, most + 1)
    kinds = [kind, *generator.choice(DISTRACTORS, count - 1)]
    places = _places(generator, count, size)
    instances = np.zeros((size, size), np.uint8)
    for index in reversed(range(count)):  # the object that gives the class is drawn last: on top
        angle = generator.uniform(-TURN, TURN)
        part = coverage(kinds[index], size, places[index][:2], places[index][2], angle)
        colour = _object_colour(generator, first, second)
        image += part * (colour[:, None, None] - image)
        instances[part >= 0.5] = index + 1
    image += generator.uniform(0, 0.05) * generator.standard_normal(image.shape, np.float32)
    return np.rint(image.clip(0, 1) * 255) / 255, instances


def _places(generator, count, size):
    """[(x, y, radius)] of `count` objects in the image that leave each other and the watermark's corner free."""
    (rows, columns), _ = watermark_glyph(size)
    corner = (columns.stop, rows.start)
    places = []
    for _ in range(count):
        radius = size * generator.uniform(*RADIUS)
        while True:
            x, y = generator.uniform(radius, size - radius, 2)
            free = math.hypot(max(x - corner[0], 0), max(corner[1] - y, 0)) > radius + 1
            if free and all(math.hypot(x - a, y - b) > 0.9 * (radius + r) for a, b, r in places):
                break
            radius *= 0.985  # a crowded image gets smaller objects: the loop always ends
        places.append((x, y, radius))
    return places


def _background_colours(generator):
    """Two muted, rather dark colours, each (3,) float32."""
    first = generator.uniform(0.1, 0.5) + generator.uniform(-0.1, 0.1, 3)
    second = first + generator.uniform(-0.25, 0.25) + generator.uniform(-0.05, 0.05, 3)
    return first.clip(0, 1).astype(np.float32), second.clip(0, 1).astype(np.float32)


def _object_colour(generator, first, second):
    """A random bright colour (3,): where one is found, some channel is 0.4 away from both background colours."""
    colours = generator.random((16, 3), np.float32)
    colours[:, generator.integers(3)] = generator.uniform(0.75, 1)
    distance = np.minimum(abs(colours - first).max(1), abs(colours - second).max(1))
    return colours[np.argmax(distance > 0.4) if (distance > 0.4).any() else np.argmax(distance)]


def _texture(generator, size):
    """(size,size) float32 in [0,1]: a gradient, stripes, checks or filtered noise."""
    kind = TEXTURES[generator.integers(len(TEXTURES))]
    angle, phase = generator.uniform(0, 2 * math.pi, 2)
    cycles = generator.uniform(2, 8)
    if kind == "noise":
        cells = generator.random((round(2 * cycles), round(2 * cycles)), np.float32)
        return np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    across = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    along = math.cos(angle) * across[None, :] + math.sin(angle) * across[:, None]
    if kind == "gradient":
        return (along - along.min()) / (along.max() - along.min())
    wave = np.sin(2 * math.pi * cycles * along + phase)
    if kind == "stripes":
        return 0.5 + 0.5 * wave
    normal = math.cos(angle) * across[:, None] - math.sin(angle) * across[None, :]
    return (0.5 + 2 * wave * np.sin(2 * math.pi * cycles * normal + phase)).clip(0, 1)  # checks


def _integer(name, value, least, most=None):
    """`value` as int, or an error that names the argument and its range."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return value
