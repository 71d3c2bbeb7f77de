"""Every path of the compendium, in one place."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PHOTOS = ROOT / "data" / "photos"
RESULTS = ROOT / "data" / "results"
BUILD = ROOT / "build"


def figures_folder() -> Path:
    """Where `save_figure` writes: the folder of the running `figures` command, else `build/figures`."""
    return _folder("CAM_UTILS_FIGURES", BUILD / "figures")


def tables_folder() -> Path:
    """Where notebooks write tables: a folder that the running `figures` command publishes from, else `build/tables`."""
    return _folder("CAM_UTILS_TABLES", BUILD / "tables")


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable) or default)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"the environment variable {variable} names {str(folder)!r}, which is no folder: name one or unset it"
        )
    return folder
