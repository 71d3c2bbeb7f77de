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
    return Path(os.environ.get("CAM_UTILS_FIGURES") or BUILD / "figures")


def tables_folder() -> Path:
    """Where notebooks write tables: a folder that the running `figures` command publishes from, else `build/tables`."""
    return Path(os.environ.get("CAM_UTILS_TABLES") or BUILD / "tables")
