"""What differs between two runs of the notebooks: `python -m cam_utils compare figures another/figures`.

Files of the same name are compared, bytes first. Where those differ, it is told what else does: the pixels of a PNG, which also
speaks for the PDF of the same figure, and the cells of a table.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from .notebooks import ReproductionError
from .reproduce import read_manifest

KINDS = (".png", ".pdf", ".csv", ".tex")


@dataclass(frozen=True)
class Difference:
    """One file of the two runs. size: 0 where only bytes differ, the greatest difference relative to the range, else infinite."""

    name: str
    what: str
    size: float


def compare(one: Path, other: Path, only: Iterable[str] = ()) -> tuple[int, list[Difference]]:
    """(number of files in either folder, the differences by name). Hidden files and folders inside are left out.

    only: the numbers of some notebooks, such as "04", whose files are compared; those of all if empty. Pixels are compared
    on the scale 0 to 1, numbers of a table relative to the greater of the two. Raises ValueError where a folder does not exist,
    neither has a figure or table, or a file is damaged.
    """
    for folder in (one, other):
        if not folder.is_dir():
            raise ValueError(f"no such folder: {str(folder)!r}")
    names = sorted({file.name for folder in (one, other) for file in folder.glob("[!.]*") if file.suffix in KINDS})
    for wanted in [f"{number}_" for number in only] or [""]:
        if not any(name.startswith(wanted) for name in names):
            what = f"a figure or table {wanted and wanted + '* '}({', '.join(KINDS)})"
            raise ValueError(f"neither {one} nor {other} holds {what}")
    names = [name for name in names if not only or name.partition("_")[0] in only]
    found = [_difference(one / name, other / name) for name in names]
    return len(names), [difference for difference in found if difference]


def reasons(one: Path, other: Path) -> list[str]:
    """What the manifests of two folders say of the reason: other versions, other parameters. Empty where one has none.

    Raises ValueError for a damaged manifest.
    """
    if not all((folder / "manifest.json").is_file() for folder in (one, other)):
        return []
    try:
        first, second = map(read_manifest, (one, other))
    except ReproductionError as error:
        raise ValueError(str(error)) from None
    lines = _apart_in(first["versions"], second["versions"], "{name} {a} / {b}")
    for slug in sorted(first["figures"].keys() & second["figures"].keys()):
        a, b = (manifest["figures"][slug].get("parameters", {}) for manifest in (first, second))
        lines += [f"{slug}: {line}" for line in _apart_in(a, b, "{name}={a!r} / {b!r}")]
    return lines


def _apart_in(one: dict, other: dict, line: str) -> list[str]:
    both = {name: (one.get(name), other.get(name)) for name in one | other}
    return [line.format(name=name, a=a, b=b) for name, (a, b) in both.items() if a != b]


def _difference(a: Path, b: Path) -> Difference | None:
    for here, there in ((a, b), (b, a)):
        if not here.is_file():
            return Difference(a.name, f"only in {there.parent}", math.inf)
    if _same_bytes(a, b):
        return None
    what, size = {".png": _pixels, ".csv": _cells, ".pdf": _drawing}.get(a.suffix, _text)(a, b)
    return Difference(a.name, what, size)


def _read(file: Path, read: Callable):
    """read(file); ValueError with the way out where the file is damaged."""
    try:
        return read(file)
    except PermissionError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is damaged ({error}): restore it (git checkout), or run its notebook again") from None


def _same_bytes(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


def _rgba(file: Path) -> Image.Image:
    return Image.open(file).convert("RGBA")


def _pixels(a: Path, b: Path) -> tuple[str, float]:
    first, second = (np.asarray(_read(file, _rgba), dtype=float) / 255 for file in (a, b))
    if first.shape != second.shape:
        (h, w), (k, v) = first.shape[:2], second.shape[:2]
        return f"{w}×{h} pixels / {v}×{k}", math.inf
    apart = np.abs(first - second).max(2)
    if not apart.any():
        return "the same pixels, other bytes (metadata or compression)", 0.0
    size = float(apart.max())
    return f"{np.count_nonzero(apart):,} of {apart.size:,} pixels, by up to {size:.3f} of 1", size


def _drawing(a: Path, b: Path) -> tuple[str, float]:
    pixels = [file.with_suffix(".png") for file in (a, b)]
    if not all(file.is_file() for file in pixels):
        return "other bytes", math.inf
    return "other bytes, see its PNG", 0.0 if _same_bytes(*pixels) else _pixels(*pixels)[1]


def _text(a: Path, b: Path) -> tuple[str, float]:
    lines = [file.read_text(encoding="utf-8", errors="replace").splitlines() for file in (a, b)]
    first = next((i for i, (x, y) in enumerate(zip(*lines, strict=False), 1) if x != y), min(map(len, lines)) + 1)
    return f"other text from line {first} on", math.inf


def _cells(a: Path, b: Path) -> tuple[str, float]:
    first, second = (_read(file, partial(pd.read_csv, dtype=str, keep_default_na=False)) for file in (a, b))
    if list(first) != list(second) or len(first) != len(second):
        shapes = " / ".join(f"{len(table)} rows of {', '.join(table)}" for table in (first, second))
        return f"other rows or columns: {shapes}", math.inf
    lines, size = [], 0.0
    for column in first:
        apart = [_apart(x, y) for x, y in zip(first[column], second[column], strict=True) if x != y]
        if any(apart):
            by = "" if math.isinf(max(apart)) else f", by up to {max(apart):.1e}"
            lines.append(f"{column}: {np.count_nonzero(apart)} of {len(first)} cells{by}")
            size = max(size, *apart)
    return "; ".join(lines) or "the same cells, other bytes", size


def _apart(x: str, y: str) -> float:
    """|x - y| relative to the greater of two numbers; infinite where one is none."""
    try:
        a, b = float(x), float(y)
    except ValueError:
        return math.inf
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    apart = abs(a - b) / max(abs(a), abs(b))
    return apart if math.isfinite(apart) else math.inf
