"""Every method by every metric on every image: `python -m cam_utils benchmark experiments`, one row for each.

One shard is one image at one layer of one network: `measuring.measure` makes its rows, `engine.complete` runs those that
are missing. The values depend on the seed and the options alone: not on order, engine, or how often the run was interrupted.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from .benchmark import fingerprint
from .cams import NotDefined, cam
from .engine import ExperimentError, check_engine, complete, merge
from .files import alone, make_ready, write_file
from .measuring import COLUMNS, EVERY_METHOD, METRICS, Task, environment, measure, prepare
from .models import REGISTRY, spec_of
from .subjects import ON_THE_SPOT, SETS, Picture, folder, networks, pictures_for

NEEDS = {  # what the metrics of a set need (`metrics.Metric`); in "watermark" the region is the object, see also watermark_share
    "photos": ("faithfulness", "map", "method", "metrics", "shapley"),
    "mosaics": ("cells",),
    "shapes": ("faithfulness", "map", "method", "metrics", "shapley", "region"),
    "watermark": ("region",),
}
NEEDS |= dict.fromkeys(("development", "data"), NEEDS["photos"])
SLOW = ("score_cam", "shap_cam", "lime")  # a map of a photo takes a second or more
REPEATING = ("sensitivity_max", "cascading_randomisation")  # run the method a dozen times


@dataclass(frozen=True)
class Profile:
    """How much is measured."""

    counts: dict[str, int]  # images of each of the built-in SETS
    models: tuple[str | nn.Module, ...] = ("tf_efficientnet_lite0", *ON_THE_SPOT)  # names, or networks with a `spec`
    layers: tuple[str, ...] = ("blocks.5", "features")  # each network uses those that it has, or else its own default
    methods: tuple[str, ...] = tuple(EVERY_METHOD)
    metrics: tuple[str, ...] = tuple(METRICS)
    method_options: dict[str, dict] = field(default_factory=dict)
    metric_options: dict[str, dict] = field(default_factory=dict)
    repeating: dict[str, int] = field(default_factory=dict)  # set: on so many images REPEATING metrics; else on all
    slow_repeating: dict[str, int] = field(default_factory=dict)  # set: on so many, by SLOW methods too; else on none
    references: dict[str, int] = field(default_factory=dict)  # set: on so many, comparison with converged values
    tolerance: float = 0.05  # relative error of those


PROFILES = {
    "quick": Profile(
        counts={"photos": 12, "mosaics": 4, "shapes": 12, "watermark": 16},
        models=("tf_efficientnet_lite0", "shapes_net_fc", "shapes_net_fc_watermark"),
        method_options={"shap_cam": {"samples_per_position": 10}, "lime": {"n_samples": 100}},
        metric_options={
            **dict.fromkeys(("insertion", "deletion"), {"steps": 10}),
            **dict.fromkeys(("road_morf", "road_lerf"), {"fractions": (0.3, 0.7)}),
            "sensitivity_max": {"n_perturbations": 5},
        },
        repeating={"photos": 4},
        slow_repeating={"shapes": 6},
        references={"photos": 4, "shapes": 6},
    ),
    "full": Profile(
        counts={"photos": 44, "mosaics": 16, "shapes": 100, "watermark": 100},
        models=("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2", *ON_THE_SPOT),
        layers=("blocks.5", "blocks.4", "features"),
        method_options={"shap_cam": {"samples_per_position": 50}},
        slow_repeating={"photos": 8, "shapes": 100},
        references={"photos": 16, "shapes": 32},
    ),
}


def run(
    profile: str | Profile = "quick",
    *,
    out: str | Path,
    seed: int = 0,
    data: str | Path | None = None,
    sets: Iterable[str] | None = None,
    limit: int | None = None,
    threads: int = 1,
    engine: str = "in-process",
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
    **choices,
) -> pd.DataFrame:
    """Measure what is not yet in OUT/shards, write OUT/experiments.csv and return it (`read_table`).

    Networks that are trained for it are kept in OUT/networks.

    profile: a key of PROFILES or a Profile; choices: other values of its fields, such as models, layers, methods, metrics; None
    changes nothing. data: a folder of images to measure instead of the built-in sets, see `subjects.folder`. sets: some of SETS.
    limit: of the images of each set. threads: torch's in this process; a Dask worker has one. engine, workers, scheduler,
    progress: see `engine.complete`; a scheduler implies Dask. OUT/experiments.json tells what the table was made from.
    Raises ValueError for what does not exist, and ExperimentError with a report of what failed, after all else has been
    measured and written; what failed is tried again next time.
    """
    profile, engine = _checked(profile, choices, data), "dask" if scheduler is not None else engine
    check_engine(engine)
    if data is not None and sets is not None:
        raise ValueError("sets are of the built-in images, data is a folder of yours: give one of them")
    sets = ("data",) if data is not None else _known("set", sets or [name for name in SETS if name != "data"], SETS)
    out, before, remote = Path(out).expanduser(), torch.get_num_threads(), engine == "dask"
    made_by = hashlib.sha256(json.dumps(environment()).encode()).hexdigest()[:16]
    kept = out / "networks" / made_by
    with alone(out, ExperimentError):
        make_ready(out, kept)
        try:
            torch.set_num_threads(1)  # the networks' weights must not depend on the number of threads
            at_once = (workers or os.cpu_count()) if remote and scheduler is None else 1
            models = networks(profile.models, sets, seed, progress, kept, at_once)
            _check_layers(models, choices.get("layers"))
            given = {} if data is None else {"data": folder(data, limit, seed)}
            tasks = plan(profile, models, sets, given, limit, seed, 1 if remote else threads)
            jobs = [task.job for task in tasks]
            sent = {fingerprint(m): m for name, m in models.items() if not remote or m.spec is not REGISTRY.get(name)}
            options = {"workers": workers, "scheduler": scheduler, "progress": progress, "say": say}
            ready = partial(prepare, environment(), sent)
            failed = complete(jobs, measure, out, COLUMNS, engine=engine, prepare=ready, **options)
        finally:
            torch.set_num_threads(before)
        merge(out, jobs, COLUMNS, out / "experiments.csv")
        about = {"seed": seed, "sets": list(sets), "data": data and str(data), "limit": limit, "shards": len(jobs)}
        about |= {"profile": vars(profile) | {"models": {name: fingerprint(model) for name, model in models.items()}}}
        about |= {"environment": environment(), "failures": failed}
        write_file(out / "experiments.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        table = read_table(out / "experiments.csv")
    if failed:
        raise ExperimentError(_report(failed, len(jobs), out))
    return table


def read_table(file: str | Path) -> pd.DataFrame:
    """experiments.csv, value for value as it was measured.

    set, model, layer, image; target, label: the explained and the true class id (missing where unknown); score: the target's
    probability; method ("reference": converged Shapley values); metric, value; seconds, evaluations: of the method for one map.
    Raises ValueError for a file that is damaged or has other columns.
    """
    try:  # as text first: an image may be called NA, and Python reads floats exactly
        text = pd.read_csv(file, dtype=str, keep_default_na=False)
        if tuple(text) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(text)}")
        text["label"] = text["label"].where(text["label"] != "").astype("Int64")
        return text.astype({"target": int, "score": float, "value": float, "seconds": float, "evaluations": float})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged or of another version ({error}): restore it, or make it again: "
            "python -m cam_utils benchmark experiments"
        ) from None


def plan(
    profile: Profile,
    models: dict[str, nn.Module],
    sets: Iterable[str],
    given: dict[str, list[Picture]],
    limit: int | None,
    seed: int,
    threads: int,
) -> list[Task]:
    """All shards of a run, in the order of the table. Costs a forward pass for each photo and network, for the mosaics."""
    counts = {name: count if limit is None else min(count, limit) for name, count in profile.counts.items()}
    tasks = []
    for name, model in models.items():
        weights, pictures = fingerprint(model), given or pictures_for(model, sets, counts, seed)
        for layer in _layers(model, profile.layers):
            methods = [m for m in profile.methods if m != "cam" or _has_cam(model, layer)]
            methods = {m: profile.method_options.get(m, {}) for m in methods}
            for set, items in pictures.items():
                metrics = [m for m in profile.metrics if METRICS[m].needs in NEEDS[set]]
                metrics = {m: profile.metric_options.get(m, {}) for m in metrics}
                for index, picture in enumerate(items if metrics else ()):
                    spared = () if index < profile.slow_repeating.get(set, 0) else SLOW
                    spared = spared if index < profile.repeating.get(set, len(items)) else tuple(methods)
                    skip = tuple((m, r) for m in methods for r in REPEATING if m in spared and r in metrics)
                    compare = index < profile.references.get(set, 0) and any(
                        METRICS[m].needs == "shapley" for m in metrics
                    )
                    options = {"tolerance": profile.tolerance if compare else None, "seed": seed, "threads": threads}
                    tasks.append(Task(picture, name, weights, layer, methods, metrics, skip, **options))
    if not tasks:
        raise ValueError("nothing to measure: none of the networks, sets and metrics go together, or all counts are 0")
    return tasks


def _checked(profile: str | Profile, choices: dict, data: str | Path | None) -> Profile:
    """The profile with the choices made, which must exist."""
    choices = {name: tuple(v) if isinstance(v, list) else v for name, v in choices.items() if v is not None}
    if isinstance(profile, str):
        profile = PROFILES[_known("profile", [profile], PROFILES)[0]]
    if data is not None and "models" not in choices:
        choices["models"] = tuple(name for name in profile.models if name not in ON_THE_SPOT)
    profile = replace(profile, **choices)
    _known("model", [name for name in profile.models if isinstance(name, str)], [*REGISTRY, *ON_THE_SPOT])
    _known("method", [*profile.methods, *profile.method_options], EVERY_METHOD)
    _known("metric", [*profile.metrics, *profile.metric_options], METRICS)
    for metric in profile.metrics:
        missing = [part for part in METRICS[metric].of if part not in profile.metrics]
        if missing:
            raise ValueError(f"{metric} is made of other metrics: ask for {', '.join(missing)} too")
    # whatever their order: what a metric is made of comes first in METRICS
    return replace(profile, metrics=tuple(metric for metric in METRICS if metric in profile.metrics))


def _known(kind: str, names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    names, known = tuple(dict.fromkeys(names)), list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5) or known
            raise ValueError(f"unknown {kind} {name!r}. Try one of: {', '.join(near)}")
    return names


def _layers(model: nn.Module, layers: Iterable[str]) -> list[str]:
    names = {name for name, _ in model.named_modules()}
    return [layer for layer in layers if layer in names] or [spec_of(model).layer]


def _check_layers(models: dict[str, nn.Module], layers: Iterable[str] | None) -> None:
    """ValueError for a layer that was asked for and no network has."""
    for layer in layers or ():
        if not any(layer == name for model in models.values() for name, _ in model.named_modules()):
            near = {name: spec_of(model).layer for name, model in models.items()}
            raise ValueError(f"none of the networks has a layer {layer!r}. Theirs by default: {near}")


def _has_cam(model: nn.Module, layer: str) -> bool:
    """Whether CAM is defined there; it refuses any other place."""
    parameter, size = next(model.parameters()), spec_of(model).input_size
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter)
    try:
        cam(model, layer, x, 0)
    except NotDefined:
        return False
    return True


def _report(failed: dict[str, dict[str, str]], shards: int, out: Path) -> str:
    lines = [f"  {name}: {what}: {why}" for name, reasons in failed.items() for what, why in reasons.items()]
    more = [f"  … and {len(lines) - 20} more, see experiments.json"] if len(lines) > 20 else []
    head = f"{len(failed)} of {shards} shards have failures; everything else is in {out / 'experiments.csv'}."
    return "\n".join([head, *lines[:20], *more, "What failed is tried again when the same command is run again."])
