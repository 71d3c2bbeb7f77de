"""What `python -m cam_utils explain` does: photos and folders in, one file of maps for each out, and a contact sheet."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .data import image_files, load_image
from .explanation import Explanation, check_options, explain
from .files import make_ready, write_file
from .layers import candidate_layers
from .models import spec_of
from .networks import open_model
from .plotting import plot_contact_sheet, plot_explanations, use_style, write_figure

FORMATS = ("png", "pdf", "npy")
CONTACT_SHEET = "contact_sheet"


def explain_files(
    photos: Sequence[Path],
    methods: Sequence[str],
    model: str,
    weights: str,
    layers: Sequence[str],
    target: str | None,
    options: dict,
    signed: bool,
    out: Path | None,
    format: str | None,
    device: str,
    say: Callable[[str], None],
) -> tuple[int, dict[Path, str]]:
    """(number of photos explained, {photo: why it could not be}). ValueError for what would be wrong for every photo."""
    known = {method: check_options(method) for method in methods}
    for name in options:  # an option goes to the methods that have it
        if not any(name in names for names in known.values()):
            check_options(methods[0], [name])
    files = [file for photo in photos for file in (image_files(photo) if photo.is_dir() else [photo])]
    several = len(files) > 1
    format = _format(out, format, several)
    use_style()
    targets = _targets(files, methods, layers, out, format, several)
    make_ready(*{to.parent for to in targets})
    network = open_model(model, weights).to(_device(device))
    layers = _layers(network, layers)
    failed, sheet = {}, []
    for file, to in zip(tqdm(files, "photos", disable=None if several else True), targets, strict=True):
        try:
            image = load_image(file)  # once, whatever the number of methods
            found = [
                _explain(network, image, target, m, layer, {k: v for k, v in options.items() if k in names})
                for layer in layers
                for m, names in known.items()
            ]
        except (ValueError, OSError) as error:
            if not several:
                raise
            failed[file] = str(error)
            continue
        _write(found, to, signed)
        sheet.append((found[-len(known)], printable(file.stem)))  # the first method at the last layer
        _report(found, file, to, several, say)
    if len(sheet) > 1 and format != "npy":
        to = targets[0].parent / f"{CONTACT_SHEET}.{format}"
        write_figure(plot_contact_sheet(*zip(*sheet, strict=True)), to, bbox_inches="tight")
        say(f"{len(sheet)} photos side by side: {printable(to)}")
    return len(sheet), failed


def _explain(network: nn.Module, image, target: str | None, method: str, layer: str, options: dict) -> Explanation:
    try:
        return explain(network, image, target, method, layer, **options)
    except (TypeError, AttributeError) as error:
        if not options:
            raise
        raise ValueError(f"{method} cannot take {options}, of which one is of the wrong kind: {error}") from error


def printable(path: Path | str) -> str:
    """A path on one line, in quotes and with escapes where it has line breaks, or bytes that are no text."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _format(out: Path | None, format: str | None, several: bool) -> str:
    ending = out.suffix[1:].lower() if out and not several else ""
    format = (format or ending or "png").lower()
    if format not in FORMATS or ending not in ("", format):
        raise ValueError(f"maps are written as {', '.join(FORMATS)}, not as {ending or format}")
    return format


def _layers(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Layers by name; none: the network's own; "all": the last at every resolution."""
    if "all" not in layers:
        return [*layers] or [spec_of(network).layer]
    if len(layers) > 1:
        raise ValueError("--layer all stands alone: give either it or the names of layers")
    parameter, size = next(network.parameters()), spec_of(network).input_size
    try:
        return list(candidate_layers(network, torch.zeros(1, 3, size, size).to(parameter))[0])
    except RuntimeError as error:
        raise ValueError(
            f"{type(network).__name__} fails on an input (1,3,{size},{size}), as its spec says: {error}"
        ) from error


def _targets(files, methods, layers, out: Path | None, format: str, several: bool) -> list[Path]:
    """A file for each photo, none of which is a photo itself or meets another."""
    if not several:
        name = "_".join([files[0].stem, *methods, *(["layers"] if len(layers) > 1 or "all" in layers else [])])
        folder = out if out and out.is_dir() else Path()
        targets = [out.with_suffix(f".{format}") if out and out != folder else folder / f"{name}.{format}"]
    else:
        folder = out or Path("explanations")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out is a folder where there are several photos, {folder} is a file")
        targets = [folder / f"{file.stem}.{format}" for file in files]
        twice = [t.name for t in targets if targets.count(t) > 1 or t.stem == CONTACT_SHEET]
        if twice:
            raise ValueError(f"two photos would be written to {twice[0]}: explain them one by one")
    for file, target in zip(files, targets, strict=True):
        if target.exists() and file.exists() and target.samefile(file):
            raise ValueError(f"--out would overwrite the photo {file}")
    return targets


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which "meta" has not
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:100]
        known = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.mps.is_available() else []),
        ]
        raise ValueError(
            f"the device {name!r} cannot be used here; these can: {', '.join(known)}. torch says: {reason}"
        ) from None
    return device


def _write(found: list[Explanation], to: Path, signed: bool) -> None:
    maps = [e.map.detach().cpu().float().numpy() for e in found]
    if to.suffix == ".npy" and len({map.shape for map in maps}) > 1:
        raise ValueError("the maps differ in size: write them one by one as npy")
    if to.suffix == ".npy":
        np.save(buffer := io.BytesIO(), np.stack(maps) if len(maps) > 1 else maps[0], allow_pickle=False)
        write_file(to, buffer.getvalue())
    else:
        write_figure(plot_explanations(found, signed=signed), to, bbox_inches="tight")


def _report(found: list[Explanation], file: Path, to: Path, several: bool, say: Callable[[str], None]) -> None:
    first = found[0]
    if several:
        say(f"{printable(file)}: {first.label} {first.score:.1%} -> {printable(to)}")
        return
    for label, probability in first.top:
        say(f"{probability:7.1%}  {label}")
    for e in found:
        error = f", standard error {e.relative_error:.1%} of the map" if e.relative_error else ""
        cost = f"{e.n_evaluations:.4g} evaluations in {e.seconds:.2f} s"
        say(f'{e.method} of "{e.label}" (class {e.target}, {e.score:.1%}) at {e.layer}: {cost}{error}')
    say(f"written: {printable(to)}")
