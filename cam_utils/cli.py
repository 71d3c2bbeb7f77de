"""The command line: `python -m cam_utils --help`. What a command needs is imported when it runs, to start fast."""

import ast
import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Explain image classifiers, and make every figure of the thesis again.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def figures(
    only: Annotated[list[str] | None, typer.Option(metavar="NN", help="Run just this notebook; repeatable.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUE",
            help="For the notebooks that run; repeatable. Values "
            "other than the notebooks' own make a variant in build/variants/.",
        ),
    ] = None,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that one cell may take.")] = 1800,
    prune: Annotated[bool, typer.Option("--prune", help="Delete figures that no notebook makes any more.")] = False,
    write_back: Annotated[
        bool, typer.Option("--write-back", help="Put the fresh outputs into notebooks/, to be committed.")
    ] = False,
    at_once: Annotated[
        int,
        typer.Option(min=1, help="So many notebooks at the same time: faster, but the times they print are not true."),
    ] = 1,
):
    """Run the notebooks and write their figures to figures/, all or nothing."""
    from . import notebooks, reproduce

    try:
        parameters = parse_parameters(parameter or ())
        options = {"timeout": timeout, "prune": prune, "write_back": write_back, "at_once": at_once}
        reproduce.reproduce(only=only or (), parameters=parameters, **options)
    except notebooks.ReproductionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def explain(
    photos: Annotated[list[Path], typer.Argument(help="Image files of any kind, or folders of them.")],
    method: Annotated[list[str], typer.Option(help="A name that `methods` lists; repeatable, side by side.")] = (
        "owen_cam",
    ),
    model: Annotated[
        str, typer.Option(help="A name that `models` lists, timm:NAME, or module:function of your own code.")
    ] = "tf_efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="pretrained, random, or a file or folder with weights.")] = "pretrained",
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Dotted name such as blocks.5; repeatable, side by side; all: the last at every resolution. "
            "[default: the model's]"
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Class name or number. [default: the top class]")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="For the methods, such as budget=512; repeatable."),
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Show what speaks against the class too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="A .png or .pdf, or .npy for the map; of several photos a folder. [default: here]"),
    ] = None,
    format: Annotated[str | None, typer.Option(help="png, pdf or npy. [default: as --out ends, else png]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
):
    """Explain what a network sees in photos: the likeliest classes, and the heat map over the photo as a file.

    Several photos or a folder also give a contact sheet. A photo that cannot be explained is named at the end, exit code 1.
    """
    from . import shell

    options = parse_parameters(option or ())
    written, failed = shell.explain_files(
        photos, method, model, weights, layer or (), target, options, signed, out, format, device, typer.echo
    )
    if failed:
        typer.echo(f"error: {len(failed)} of {len(failed) + written} photos could not be explained:", err=True)
        for path, reason in failed.items():
            typer.echo(f"  {shell.printable(path)}: {reason}", err=True)
        raise typer.Exit(1)


benchmark = typer.Typer(help="Measure; each command writes a table to data/results.", no_args_is_help=True)
app.add_typer(benchmark, name="benchmark")
Photos = Annotated[int, typer.Option(min=1, help="How many photos that Owen-CAM was not developed on.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Of EfficientNet-Lite0; repeatable.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the table. [default: data/results]")]


@benchmark.command()
def shapley(
    photos: Photos = 16,
    layers: Layers = None,
    shapes: Annotated[int, typer.Option(min=0, help="Images for a network with a fully connected head.")] = 8,
    threads: Threads = 2,
    out: Out = None,
):
    """Errors of estimates of Shap-CAM's values against their cost: shapley.csv. Hours from nothing, see README."""
    import torch

    from . import benchmark as bench
    from .models import load_model
    from .paths import RESULTS

    torch.set_num_threads(threads)
    model, out = load_model(), out or RESULTS
    images = bench.photos_for(model, photos)
    bench.shapley_benchmark(model, images, layers or ["bn2", "blocks.5", "blocks.4"], shapes=shapes, out=out)
    typer.echo(f"written: {out / 'shapley.csv'}")


@benchmark.command()
def speed(photos: Photos = 8, layers: Layers = None, threads: Threads = 2, out: Out = None):
    """Seconds of Owen-CAM, Shap-CAM and grad-cam's GradCAM side by side: speed.csv. Minutes."""
    import torch

    from . import benchmark as bench
    from .files import make_ready, write_file
    from .models import load_model
    from .paths import RESULTS

    torch.set_num_threads(threads)
    model, out = load_model(), out or RESULTS
    make_ready(out)
    table = bench.speed_benchmark(model, bench.photos_for(model, photos), layers or ["blocks.5", "blocks.4"])
    write_file(out / "speed.csv", table.to_csv(index=False))
    typer.echo(f"written: {out / 'speed.csv'}")


@benchmark.command()
def precision(photos: Photos = 4, layers: Layers = None, threads: Threads = 2, out: Out = None):
    """How far maps in float32, float16 and bfloat16 are from those in float64: precision.csv. Minutes."""
    import torch

    from . import benchmark as bench
    from .files import make_ready, write_file
    from .layers import resolve_layer
    from .models import load_model
    from .paths import RESULTS
    from .precision import precision_benchmark

    torch.set_num_threads(threads)
    model, out, layers = load_model(), out or RESULTS, layers or ["blocks.5", "bn2"]
    for layer in layers:  # before any work
        resolve_layer(model, layer)
    make_ready(out)
    table = precision_benchmark(model, bench.photos_for(model, photos), layers)
    write_file(out / "precision.csv", table.round(7).to_csv(index=False))
    typer.echo(f"written: {out / 'precision.csv'}")


@benchmark.command()
def experiments(
    profile: Annotated[
        str, typer.Option(help="quick or full: how many images, and how much the slow methods may cost.")
    ] = "quick",
    data: Annotated[Path | None, typer.Option(help="A folder of images, instead of the built-in sets.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help="Repeatable.")] = None,
    layers: Annotated[list[str] | None, typer.Option("--layer", help="Where a network has it; repeatable.")] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="Repeatable. [default: all]")] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metric", help="Repeatable. [default: all]")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="photos, mosaics, shapes, watermark; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images of each set.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 2)] = 0,  # of 64 bits; other draws take the next one
    threads: Annotated[int, typer.Option(min=1, help="Of torch; 1 gives the values that Dask's workers give.")] = 1,
    progress: Annotated[bool | None, typer.Option("--progress/--no-progress", help="[default: on a terminal]")] = None,
    engine: Annotated[str, typer.Option(help="in-process, or dask: a local cluster.")] = "in-process",
    workers: Annotated[int | None, typer.Option(min=1, help="Of the local cluster. [default: one a core]")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="An existing Dask scheduler.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the table. [default: build/experiments/PROFILE]")] = None,
):
    """Every method by every metric on every image: experiments.csv. Start it again, and it does what is missing."""
    from . import experiments as all_of
    from .engine import ExperimentError
    from .paths import BUILD

    choices = {"models": models, "layers": layers, "methods": methods, "metrics": metrics}
    where = {"engine": engine, "workers": workers, "scheduler": scheduler, "threads": threads, "say": typer.echo}
    out = out or BUILD / "experiments" / profile
    try:
        all_of.run(
            profile, out=out, seed=seed, data=data, sets=sets, limit=limit, progress=progress, **where, **choices
        )
    except ExperimentError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"written: {out / 'experiments.csv'}")


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(help="A folder of figures or tables, such as figures.")],
    other: Annotated[Path, typer.Argument(help="That of another run or machine.")],
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Differences up to this are none: of pixels from 0 to 1, of numbers relatively."),
    ] = 0,
    only: Annotated[list[str] | None, typer.Option(metavar="NN", help="Of just this notebook; repeatable.")] = None,
):
    """Name what differs between the figures and tables of two runs; exit code 1 if anything does."""
    from .compare import compare as compared
    from .compare import reasons

    number, differences = compared(one, other, only or ())
    differences = [d for d in differences if d.size > tolerance or not tolerance]
    for what, same in groupby(sorted(differences, key=lambda d: d.what), lambda d: d.what):
        typer.echo(f"{what}: {', '.join(difference.name for difference in same)}")
    for reason in reasons(one, other) if differences else ():
        typer.echo(f"made with {reason}")
    typer.echo(f"{number} files, {len(differences)} differ" + (f" by more than {tolerance:g}" if tolerance else ""))
    if differences:
        raise typer.Exit(1)


@app.command()
def models():
    """List the networks, their layer for CAMs, input size, and whether their weights are on this machine."""
    from .models import REGISTRY, find_weights

    rows = [
        (name, spec.layer, f"{spec.input_size}", "yes" if find_weights(name) else "no", spec.source)
        for name, spec in REGISTRY.items()
    ]
    _table(("model", "layer", "input", "weights", "source"), rows)


@app.command()
def methods():
    """List the methods."""
    from .explanation import METHODS

    _table(
        ("method", ""),
        [(name, (method.__doc__ or "").strip().partition("\n")[0]) for name, method in METHODS.items()],
    )


def parse_parameters(assignments) -> dict:
    """`name=value` to values, read as Python literals or else YAML: 3, None, true, dog, [dog, cat] all work."""
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"a parameter is given as name=value, not {text!r}")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = _yaml(name, value)
    return values


def _yaml(name: str, value: str):
    import yaml

    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):  # a date such as 2026-13-01 is a ValueError
        raise ValueError(
            f"{name}={value[:80]} is neither a Python literal nor YAML: put a text into quotes, '{name}=\"...\"'"
        ) from None


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    """Run the command line; what the user can put right is one line and exit code 2, no traceback."""
    if hasattr(sys.stdout, "reconfigure"):  # a class or a file may be called what this terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
