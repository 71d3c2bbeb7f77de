"""The table of the experiments: rows against direct calls, kills, failures, damaged files, Dask's workers."""

import csv
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode

from cam_utils import experiments, measuring, subjects
from cam_utils.benchmark import DEVELOPMENT, fingerprint
from cam_utils.data import load_photos, make_shapes
from cam_utils.engine import ExperimentError, Job, complete, merge, one_cluster, read_shard, write_shard
from cam_utils.experiments import PROFILES, Profile, read_table, run
from cam_utils.files import alone
from cam_utils.games import LayerGame
from cam_utils.measuring import COLUMNS, EVERY_METHOD
from cam_utils.metrics import METRICS
from cam_utils.models import ModelSpec, preprocess
from cam_utils.postprocess import heatmap
from cam_utils.shapes import CLASS_NAMES
from cam_utils.shapley import kernel_shap
from conftest import same_state, state_of, toy_cnn

FEW = {
    "methods": ("grad_cam", "owen_cam", "random_map"),
    "metrics": ("average_drop", "coherency", "complexity", "adcc", "sensitivity_max"),
    "metric_options": {"sensitivity_max": {"n_perturbations": 2}},
}


def toy(head="fc", size=12, names=("a", "b", "c"), name="toy"):
    model = toy_cnn(head, classes=len(names))
    spec = (name, "features", size, size, InterpolationMode.BILINEAR, (0.5,) * 3, (0.5,) * 3, tuple(names), "test")
    model.spec = ModelSpec(*spec)
    return model


def images(folder, count, size=12):
    """A folder of `count` images that look alike to nobody."""
    draws = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(draws.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"image_{i:02d}.png")
    return folder


def measured(out, data, **options):
    """A run with the toy network and few methods."""
    return run(
        Profile({}, **FEW | {"models": (toy(),)} | options.pop("choices", {})), out=out, data=data, **quiet(options)
    )


def quiet(options):
    return {"say": lambda line: None, "progress": False} | options


def same(a, b):
    """Equal in every value and in the order of the rows; times may differ."""
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"), check_exact=True)
    return True


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiments")
    data = images(root / "data", 8)
    return data, measured(root / "out", data), root / "out"


# the rows


def test_every_image_method_and_metric_has_one_row_with_the_value_of_a_direct_call(uninterrupted):
    data, table, _ = uninterrupted
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(["set", "model", "layer", "image", "target", "method", "metric"]).any()
    assert len(table) == 8 * len(FEW["methods"]) * len(FEW["metrics"])
    model = toy()
    for name in ("image_00.png", "image_05.png"):
        x = preprocess(data / name, model).double()
        probabilities = model(x).softmax(1)[0]
        target = probabilities.argmax()[None]
        rows = table[table.image == name].set_index(["method", "metric"])
        assert set(rows.target) == {int(target)} and set(rows.layer) == {"features"} and rows.label.isna().all()
        assert np.allclose(rows.score, probabilities.max().item(), rtol=0, atol=1e-12)
        for method in ("grad_cam", "owen_cam"):
            maps = EVERY_METHOD[method](model, "features", x, target)
            drop = METRICS["average_drop"].function(model, x, target, heatmap(maps, (12, 12)))
            coherency = METRICS["coherency"].function(model, "features", x, target, EVERY_METHOD[method])
            size = heatmap(maps, (12, 12)).double().mean((1, 2))
            adcc = 3 / (1 / coherency + 1 / (1 - size) + 1 / (1 - drop))
            expected = {"average_drop": drop, "coherency": coherency, "complexity": size, "adcc": adcc}
            for metric, value in expected.items():
                assert rows.value[method, metric] == pytest.approx(float(value), abs=1e-9), (method, metric)
    assert set(table.evaluations[table.method == "grad_cam"]) == {2.5}
    assert (table.seconds > 0).all()


def test_batch_norms_are_folded_but_where_weights_are_changed(uninterrupted, tmp_path, monkeypatch):
    met = {}

    def spy(metric, model, layer, x, target, method):
        met[metric] = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        return METRICS["coherency"].function(model, layer, x, target, method)

    spies = {
        m: dataclasses.replace(METRICS[m], function=partial(spy, m))
        for m in ("cascading_randomisation", "sensitivity_max")
    }
    with monkeypatch.context() as patch:
        for metric, about in spies.items():
            patch.setitem(METRICS, metric, about)
        measured(tmp_path, uninterrupted[0], limit=1, choices={"metrics": tuple(spies), "metric_options": {}})
    assert met == {"cascading_randomisation": 1, "sensitivity_max": 0}


def test_values_depend_on_the_seed_and_not_on_the_other_images(uninterrupted, tmp_path):
    data, table, _ = uninterrupted
    some = measured(tmp_path / "some", data, limit=3)
    assert len(set(some.image)) == 3
    assert same(some, table[table.image.isin(set(some.image))].reset_index(drop=True))
    other = measured(tmp_path / "other", data, seed=1)
    changed = table[other.value != table.value]
    assert set(changed.metric[changed.method != "random_map"]) == {"sensitivity_max"}  # its perturbations are drawn
    assert set(changed.metric[changed.method == "random_map"]) == set(FEW["metrics"])


def test_a_random_map_is_drawn_anew_for_every_image_and_call(uninterrupted):
    table = uninterrupted[1]
    random = table[table.method == "random_map"].set_index(["metric", "image"]).value
    assert random["complexity"].nunique() == 8
    assert (random["coherency"] < 0.9).all() and (random["sensitivity_max"] > 0.1).all()


def test_mosaics_are_of_four_classes_that_the_network_is_sure_of(lite0, tmp_path, monkeypatch):
    photos = {photo.name: photo for photo in load_photos() if photo.name not in DEVELOPMENT}
    some = dict(list(photos.items())[:20])
    monkeypatch.setattr(subjects, "load_photos", lambda: list(some.values()))
    made = subjects.mosaics(lite0, 3, seed=0)
    used = [name for m in made for name in m.name.split("+")]
    assert len(set(used)) == 12  # no photo twice while there are others
    for m in made:
        assert len(set(m.labels)) == 4
        for name, label in zip(m.name.split("+"), m.labels, strict=True):
            probability = lite0(preprocess(photos[name].image, lite0)).softmax(1)[0]
            assert photos[name].target == label == int(probability.argmax()) and probability[label] >= 0.5
    choices = {"methods": ("grad_cam", "centre_gaussian"), "counts": {"mosaics": 1}, "sets": ("mosaics",)}
    table = run("quick", out=tmp_path, models=("tf_efficientnet_lite0",), **quiet(choices))
    assert set(table.image) == {made[0].name} and set(table.metric) == {"grid_pointing_game"}
    assert tuple(table.target) == tuple(table.label) == made[0].labels * 2
    centre = table.value[table.method == "centre_gaussian"]
    assert np.allclose(centre, 0.25, atol=1e-6)  # a symmetrical map has a quarter in every cell
    x = subjects.load(made[0], lite0)
    map = EVERY_METHOD["grad_cam"](lite0, "blocks.5", x, made[0].labels[2])
    positive = torch.nn.functional.interpolate(map[None], (224, 224), mode="bilinear")[0, 0].relu()
    share = positive[112:, :112].sum() / positive.sum()  # the third cell is at the bottom left
    assert table.value.iloc[2] == pytest.approx(float(share), abs=1e-5)


def test_shapes_with_and_without_the_watermark(tmp_path):
    options = {"models": (toy("gap", 64, CLASS_NAMES),), "methods": ("all_ones", "cam", "random_map")}
    options |= {"metrics": ("energy_pointing_game", "pointing_game"), "counts": {"shapes": 3, "watermark": 3}}
    table = run("quick", out=tmp_path, **quiet(options))
    assert len(table) == 3 * 3 * 2 + 3 * 3 * 3
    plain = make_shapes(3, seed=1)
    rows = table[table.method == "all_ones"].set_index(["set", "image", "metric"])
    for i in range(3):
        name, share = f"shape_{i:03d}", plain.masks[i].mean()
        for kind in ("shapes", "watermark"):  # of ones, all but one pixel
            row = rows.loc[kind, name, "energy_pointing_game"]
            assert row.value == pytest.approx(share, rel=1e-3) and row.label == plain.labels[i]
        assert rows.value["watermark", name, "watermark_share"] == pytest.approx(8 * 8 / 64**2, rel=1e-3)
    for picture, image in zip(subjects.shapes(3, 0, marked=True), plain.images, strict=True):
        changed = (picture.pixels != np.rint(image.transpose(1, 2, 0) * 255)).any(2)
        assert changed.any() and not (changed & ~picture.watermark).any()  # the watermark is on every image


def test_comparison_with_converged_shapley_values(tmp_path):
    choices = {"methods": ("grad_cam", "owen_cam", "shap_cam"), "references": {"data": 1}}
    choices |= {"metrics": ("shapley_error", "efficiency_gap", "complexity")}
    table = measured(tmp_path / "out", images(tmp_path / "data", 2), choices=choices)
    compared = table[table.metric != "complexity"].set_index(["method", "metric"]).value
    assert set(table.image[table.metric == "shapley_error"]) == {"image_00.png"}
    assert set(compared.index.get_level_values(0)) == {"reference", "owen_cam", "shap_cam"}
    model = toy()
    x = preprocess(tmp_path / "data" / "image_00.png", model).double()
    game = LayerGame(model, "features", x, model(x).argmax(1))
    truth = kernel_shap(game, 40_000, torch.Generator().manual_seed(3)).values  # an estimator of its own
    values = EVERY_METHOD["owen_cam"](model, "features", x, model(x).argmax(1)).flatten()
    error = float((values - truth).norm() / truth.norm())
    assert compared["owen_cam", "shapley_error"] == pytest.approx(error, abs=0.01)
    assert compared["reference", "shapley_error"] <= 0.05
    assert compared["owen_cam", "efficiency_gap"] < 1e-6


def test_networks_trained_on_the_spot(monkeypatch):
    monkeypatch.setattr(subjects, "TRAINING", {"images": 40, "epochs": 1})
    a, b, marked = (subjects.train(name) for name in ("shapes_net_fc", "shapes_net_fc", "shapes_net_fc_watermark"))
    assert (
        fingerprint(a) == fingerprint(b) != fingerprint(marked) != fingerprint(subjects.train("shapes_net_fc", seed=1))
    )
    assert marked.spec.name == "shapes_net_fc_watermark" and not a.training
    assert set(subjects.networks(subjects.ON_THE_SPOT, ["mosaics"], 0, False)) == set()


def test_a_trained_network_is_kept_and_a_broken_file_is_not_taken_for_one(monkeypatch, tmp_path):
    monkeypatch.setattr(subjects, "TRAINING", {"images": 40, "epochs": 1})
    first = subjects.train("shapes_net_fc", 0, False, tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    assert fingerprint(subjects.train("shapes_net_fc", 0, False, tmp_path / "kept")) == fingerprint(first)
    monkeypatch.setattr(subjects, "shapes_classifier", None)  # would fail
    again = subjects.train("shapes_net_fc", 0, False, tmp_path / "kept")
    assert fingerprint(again) == fingerprint(first) and again.spec == first.spec and not again.training
    with pytest.raises(TypeError):
        subjects.train("shapes_net_fc", 1, False, tmp_path / "kept")  # another seed is another network


def test_networks_trained_at_once_are_those_trained_one_by_one(monkeypatch, tmp_path):
    monkeypatch.setattr(subjects, "TRAINING", {"images": 40, "epochs": 1})
    names = ("shapes_net_gap", "shapes_net_fc_watermark")
    one_by_one = [fingerprint(subjects.train(name, 3, False)) for name in names]
    monkeypatch.setattr(subjects, "shapes_classifier", None)  # would fail in this process
    at_once = subjects.networks(names, ["shapes"], 3, False, tmp_path, at_once=2)
    assert [fingerprint(at_once[name]) for name in names] == one_by_one
    assert subjects.networks(names, ["mosaics"], 4, False, tmp_path, at_once=2) == {}
    assert not list(tmp_path.glob("*-4.pt"))


def test_networks_that_cannot_be_trained_at_once_are_trained_here(monkeypatch, tmp_path):
    monkeypatch.setattr(subjects, "TRAINING", {"images": 40, "epochs": 1})
    monkeypatch.setattr(subjects.sys, "executable", str(tmp_path / "no-python"))
    found = subjects.networks(("shapes_net_gap", "shapes_net_fc"), ["shapes"], 3, False, tmp_path, at_once=2)
    assert set(found) == {"shapes_net_gap", "shapes_net_fc"} and len(list(tmp_path.glob("*-3.pt"))) == 2


@pytest.mark.parametrize("options, at_once", [({"engine": "dask", "workers": 3}, 3), ({"workers": 3}, 1)])
def test_as_many_networks_are_trained_at_once_as_a_local_cluster_has_workers(monkeypatch, tmp_path, options, at_once):
    asked = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(experiments, "networks", asked)
    with pytest.raises(InterruptedError):
        run("quick", out=tmp_path, progress=False, **options)
    assert asked.call_args.args[-1] == at_once


def test_cam_is_left_out_where_it_is_not_defined(tmp_path):
    choices = {"methods": ("cam", "grad_cam"), "metrics": ("complexity",)}
    for head, methods in (("fc", {"grad_cam"}), ("gap", {"cam", "grad_cam"})):
        table = measured(tmp_path / head, images(tmp_path / "data", 1), choices=choices | {"models": (toy(head),)})
        assert set(table.method) == methods


def test_the_model_and_the_number_of_threads_are_left_alone(tmp_path):
    model = toy()
    model.train()
    before, threads = state_of(model), torch.get_num_threads()
    measured(tmp_path / "out", images(tmp_path / "data", 1), choices={"models": (model,)}, threads=2)
    assert same_state(before, state_of(model)) and torch.get_num_threads() == threads


def test_a_folder_of_images_in_subfolders(tmp_path):
    for name in ("b/two.PNG", "a/one.jpg", "a/.hidden.png", ".hidden/four.png", "three.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 12)).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert [picture.name for picture in subjects.folder(tmp_path)] == ["a/one.jpg", "b/two.PNG", "three.webp"]
    drawn = {tuple(p.name for p in subjects.folder(tmp_path, 2, seed)) for seed in range(8)}
    assert len(drawn) > 1 and all(list(names) == sorted(names) and len(names) == 2 for names in drawn)
    with pytest.raises(ValueError, match="no image in"):
        subjects.folder(tmp_path / "b", 1) and subjects.folder(images(tmp_path / "empty", 0))
    with pytest.raises(ValueError, match="not a folder"):
        subjects.folder(tmp_path / "three.webp")


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"methods": ("gradcam",)}, "unknown method 'gradcam'. Try one of: grad_cam"),
        ({"metrics": ("adcc",)}, "ask for average_drop, coherency, complexity too"),
        ({"metrics": ("deletoin",)}, "deletion"),
        ({"models": ("resnet",)}, "resnet18"),
        ({"sets": ("photo",)}, "photos"),
        ({"profile": "fast"}, "quick, full"),
        ({"engine": "spark"}, "in-process, dask"),
        ({"sets": ("mosaics",), "models": ("shapes_net_gap",)}, "nothing to measure"),
        ({"sets": ("photos",), "data": "."}, "give one of them"),
    ],
)
def test_wrong_requests_fail_before_anything_is_computed(tmp_path, choices, message):
    with pytest.raises(ValueError, match=message):
        run(**{"profile": "quick", "out": tmp_path / "out", "models": ("tf_efficientnet_lite0",)} | quiet(choices))
    assert not list(tmp_path.rglob("*.csv"))


def test_profiles_name_what_exists():
    for profile in PROFILES.values():
        experiments._checked(profile, {}, None)
        assert set(profile.counts) | set(profile.repeating) | set(profile.slow_repeating) | set(
            profile.references
        ) <= set(subjects.SETS)


# what goes wrong


def test_a_killed_run_goes_on_where_it_was(uninterrupted, tmp_path):
    data, table, complete_out = uninterrupted
    out = tmp_path / "out"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_experiments as t; "
    code += f"t.run_and_wait_to_be_killed({str(out)!r}, {str(data)!r})"
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(shard_files(out)) < 3 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    first = {file: file.read_bytes() for file in shard_files(out)}
    assert len(first) == 3 and not (out / "experiments.csv").exists()
    lines = []
    resumed = measured(out, data, say=lines.append)
    assert lines == ["8 shards, of which 3 are there"]
    assert same(resumed, table) and len(shard_files(out)) == 8
    assert {file: file.read_bytes() for file in first} == first  # not even their seconds
    assert {file.name for file in shard_files(out)} == {file.name for file in shard_files(complete_out)}
    assert same(read_table(out / "experiments.csv"), table)


def run_and_wait_to_be_killed(out, data):
    """In a process of its own: the run of `measured`, stuck in its fourth shard."""

    def stuck(task):
        if len(shard_files(out)) == 3:
            time.sleep(600)
        return measuring.measure(task)

    torch.set_num_threads(1)
    experiments.measure = stuck
    measured(out, data)


def shard_files(out):
    return sorted(Path(out).glob("shards/*.csv"))


def test_what_fails_is_reported_and_tried_again_and_costs_nothing_else(uninterrupted, tmp_path, monkeypatch):
    data, table, _ = uninterrupted
    right = EVERY_METHOD["owen_cam"]
    drop = dataclasses.replace(METRICS["complexity"], function=lambda heat: heat.sum((1, 2)) * torch.nan)

    def wrong(model, layer, x, target):
        if int(target) == wanted:
            raise RuntimeError("out of\nluck")
        return right(model, layer, x, target)

    wanted = int(table.target.iloc[0])
    hit = set(table.image[table.target == wanted])
    with monkeypatch.context() as patch:
        patch.setitem(EVERY_METHOD, "owen_cam", wrong)
        with pytest.raises(ExperimentError) as error:
            measured(tmp_path, data)
    text = str(error.value)
    assert f"{len(hit)} of 8 shards have failures" in text
    assert f"data {sorted(hit)[0]}, toy at features: owen_cam: RuntimeError: out of luck" in text
    assert same(
        read_table(tmp_path / "experiments.csv"),
        table[(table.target != wanted) | (table.method != "owen_cam")].reset_index(drop=True),
    )
    assert json.loads((tmp_path / "experiments.json").read_text())["failures"]
    with monkeypatch.context() as patch:
        patch.setitem(METRICS, "complexity", drop)
        with pytest.raises(ExperimentError, match="grad_cam, complexity: ValueError: the value is NaN"):
            measured(tmp_path, data)  # only the shards that failed
    lines = []
    assert same(measured(tmp_path, data, say=lines.append), table)
    assert lines == [f"8 shards, of which {8 - len(hit)} are there"]
    assert json.loads((tmp_path / "experiments.json").read_text())["failures"] == {}


def test_an_unreadable_image_costs_only_itself(uninterrupted, tmp_path):
    data = images(tmp_path / "data", 3)
    (data / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ExperimentError, match="data broken.jpg, .*: everything: ValueError: .*broken.jpg' is no image"):
        measured(tmp_path / "out", data)
    assert set(read_table(tmp_path / "out" / "experiments.csv").image) == {f"image_{i:02d}.png" for i in range(3)}


def test_damaged_and_foreign_shards_are_computed_again(uninterrupted, tmp_path):
    data, table, _ = uninterrupted
    measured(tmp_path, data)
    files = shard_files(tmp_path)
    text = files[0].read_text()
    files[0].write_text(text[: len(text) // 2])
    files[1].write_text(text)  # another's
    files[2].write_text("set,model\n1,2\n")
    files[3].write_bytes(b"")
    files[4].write_text(files[4].read_text().replace("toy", "top", 2).replace("top", "toy", 1))
    (tmp_path / "shards" / ".cam_utils-left").mkdir()
    (tmp_path / "shards" / ".cam_utils-left" / "key.csv").write_text("half a row")
    lines = []
    assert same(measured(tmp_path, data, say=lines.append), table)
    assert lines == ["8 shards, of which 3 are there"]
    assert not list(tmp_path.rglob(".cam_utils-*"))


def test_what_a_value_depends_on_is_in_the_key(uninterrupted, tmp_path, monkeypatch):
    data = images(tmp_path / "data", 2)
    out = tmp_path / "out"

    def there(**options):
        lines = []
        measured(out, data, say=lines.append, **options)
        return lines[0].split()[-3]

    assert (there(), there()) == ("0", "2")
    other = toy()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    assert there(choices={"models": (other,)}) == "0" and there(seed=1) == "0"
    assert there(choices={"metric_options": {"sensitivity_max": {"n_perturbations": 3}}}) == "0"
    Image.new("RGB", (12, 12), "red").save(data / "image_00.png")
    assert there() == "1"
    environment = measuring.environment() | {"cam_utils": "other"}
    with monkeypatch.context() as patch:
        for module in (measuring, experiments):
            patch.setattr(module, "environment", lambda: environment)
        assert there() == "0"
    assert there() == "2"


def test_two_runs_at_once_are_refused(tmp_path):
    with alone(tmp_path, ExperimentError):
        with pytest.raises(ExperimentError, match=f"another run .process {os.getpid()}. is at work in"):
            measured(tmp_path, images(tmp_path / "data", 1))
    measured(tmp_path, tmp_path / "data")


def test_shards_keep_every_bit_and_any_text(tmp_path):
    columns = ("name", "value", "n")
    rows = [{"name": 'a, "b"\n#é', "value": 0.1 + 0.2, "n": 3}, {"name": "NA", "value": 5e-324, "n": ""}]
    job = Job("a", "key", None)
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path, job, columns, rows, {})
    merge(tmp_path, [job, Job("b", "absent", None)], columns, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["name"] for row in found] == [row["name"] for row in rows]
    assert [float(row["value"]) for row in found] == [row["value"] for row in rows]
    assert read_shard(tmp_path, job, ("name", "value")) is None


# Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield cluster.scheduler_address, client


@pytest.mark.slow
def test_a_dask_worker_killed_in_mid_run_costs_no_row(cluster, tmp_path):
    address, client = cluster
    data = images(tmp_path / "data", 12)
    choices = {"methods": ("grad_cam", "random_map", "lime"), "method_options": {"lime": {"n_samples": 1000}}}
    here, found, lines = measured(tmp_path / "here", data, choices=choices), [], []

    def there():
        options = {"choices": choices, "scheduler": address, "say": lines.append}
        found.append(measured(tmp_path / "out", data, **options))

    thread = threading.Thread(target=there)
    thread.start()
    deadline = time.monotonic() + 120
    while len(shard_files(tmp_path / "out")) < 2 and time.monotonic() < deadline and thread.is_alive():
        time.sleep(0.02)
    victim = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)
    assert len(shard_files(tmp_path / "out")) < 12
    thread.join(180)
    assert same(found[0], here)
    assert victim not in client.run(os.getpid).values()
    assert "Dask: 2 workers, dashboard at" in lines[1]
    assert len(shard_files(tmp_path / "out")) == 12


@pytest.mark.slow
def test_what_fails_on_a_dask_worker_is_reported(cluster, tmp_path):
    address, client = cluster
    jobs = [Job(f"job {i}", f"key{i}", i) for i in range(6)]

    def work(number):
        if number == 3:
            os._exit(1)  # takes its worker with it, every time
        if number == 4:
            raise ValueError("four")
        return [{"n": number}], {}

    def refuse():
        raise RuntimeError("another torch")

    options = {"engine": "dask", "scheduler": address, "progress": False, "say": lambda line: None}
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))  # not four
    deadly = jobs.pop(3)  # apart from the others: what waits on a worker when it dies is blamed as well
    failed = complete(jobs, work, tmp_path, ("n",), **options)
    assert failed == {"job 4": {"everything": "ValueError: four"}}
    failed = complete([deadly], work, tmp_path, ("n",), **options)
    assert set(failed) == {"job 3"} and "KilledWorker" in failed["job 3"]["everything"]
    client.wait_for_workers(1, timeout=120)  # both may have just died, and nobody would refuse
    with pytest.raises(ExperimentError, match="cannot take part. RuntimeError: another torch"):
        complete(jobs, work, tmp_path, ("n",), prepare=refuse, **options)


@pytest.mark.slow
def test_a_local_cluster_is_started_and_stopped(uninterrupted, tmp_path):
    pytest.importorskip("distributed")
    data, table, _ = uninterrupted
    assert same(measured(tmp_path, data, engine="dask", workers=2), table)


@pytest.mark.slow
def test_runs_share_a_local_cluster_that_stops_at_the_end(uninterrupted, tmp_path):
    pytest.importorskip("distributed")
    (data, table, _), lines = uninterrupted, []
    with one_cluster():
        for run in ("first", "second"):
            assert same(measured(tmp_path / run, data, engine="dask", workers=1, say=lines.append), table)
    first, second = (line for line in lines if "dashboard" in line)
    assert first == second
    port = int(re.search(r"127\.0\.0\.1:(\d+)", first)[1])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_dask_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="cluster"):
        measured(tmp_path, images(tmp_path / "data", 1), engine="dask")


def test_the_order_of_the_metrics_does_not_matter(tmp_path):
    """A metric that is made of others was lost where it was asked for before them."""
    metrics = ("adcc", "average_drop", "coherency", "complexity")
    found = measured(tmp_path / "out", images(tmp_path / "data", 1), choices={"metrics": metrics})
    assert set(found.metric) == set(metrics)
