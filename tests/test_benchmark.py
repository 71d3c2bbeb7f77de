from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from cam_utils import benchmark as bench
from cam_utils.data import load_photos
from cam_utils.games import LayerGame
from cam_utils.models import REGISTRY
from cam_utils.shapley import Estimate, exact, permutation
from conftest import toy_cnn


@pytest.fixture
def game(x):
    return LayerGame(toy_cnn("fc"), "features", x[:1], 1, deferred=True)  # 36 players


@pytest.fixture
def small(x):
    return LayerGame(toy_cnn("gap"), "features.3", x[:1, :, :8, :6], 1, deferred=True)  # 12 players


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


def test_the_reference_is_right(small):
    """Although a surrogate serves as its control variate, it is that of the definition, within its own stated error."""
    truth, found = exact(small), bench.reference(small, 0.01, torch.Generator().manual_seed(0))
    assert relative_error(found.values, truth.values) < 0.02
    assert ((found.values - truth.values).abs() <= 4 * found.standard_error).all()
    assert found.standard_error.norm() <= 0.01 * found.values.norm()


def test_the_reference_agrees_with_plain_permutations(game):
    found = bench.reference(game, 0.01, torch.Generator().manual_seed(0))
    plain = permutation(game, 40_000, torch.Generator().manual_seed(1))
    z = (found.values - plain.values) / (found.standard_error**2 + plain.standard_error**2).sqrt()
    assert z.abs().max() < 4.5 and 0.3 < z.square().mean() < 2.5


def test_a_reference_is_computed_once(game, tmp_path, monkeypatch):
    key = {"image": "a", "layer": "features"}
    values, error = bench.cached_reference(game, key, 0.05, 1, tmp_path)
    monkeypatch.setattr(bench, "reference", None)  # would fail
    again, same = bench.cached_reference(game, key, 0.05, 1, tmp_path)
    assert torch.equal(values, again) and error == same and 0 < error <= 0.05
    with pytest.raises(TypeError):  # another game, or a stricter demand: not the one that is kept
        bench.cached_reference(game, key | {"layer": "b"}, 0.05, 1, tmp_path)
    with pytest.raises(TypeError):
        bench.cached_reference(game, key, error / 2, 1, tmp_path)


def test_a_damaged_reference_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "reference", lambda *_: Estimate(torch.ones(36), torch.full((36,), 0.01), 0, 0.0))
    game = SimpleNamespace(n_players=36)
    found = bench.cached_reference(game, {"image": "a"}, 0.01, 1, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    bits = [whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :] for i in range(0, len(whole), 13)]
    for damaged in [whole[:length] for length in range(0, len(whole), 50)] + bits:
        file.write_bytes(damaged)
        again = bench.cached_reference(game, {"image": "a"}, 0.01, 1, tmp_path)
        assert torch.equal(again[0], found[0]) and again[1] == found[1]


def test_a_reference_that_stopped_at_its_limit_is_not_computed_again(game, tmp_path, monkeypatch):
    unreachable = Estimate(torch.ones(36), torch.ones(36), 0, 0.0)
    monkeypatch.setattr(bench, "reference", lambda *_: unreachable)
    bench.cached_reference(game, {"image": "a"}, 0.01, 1, tmp_path)
    monkeypatch.setattr(bench, "reference", None)
    assert bench.cached_reference(game, {"image": "a"}, 0.01, 1, tmp_path)[1] == 1


@pytest.mark.parametrize("name", [*bench.ESTIMATORS, *bench.PEERS])
def test_every_player_of_the_benchmark_is_on_its_way_to_the_truth(small, name):
    """Also that costs are counted: what an estimator says that it spent is what the game has seen, within the budget."""
    truth = exact(small).values
    before = small.n_evaluations
    estimator = (bench.ESTIMATORS | bench.PEERS)[name]
    (row,) = bench.compare(small, truth, 0.0, {name: estimator}, [3000], 0)
    assert row["error"] < 0.25 and row["correlation"] > 0.97
    assert small.n_evaluations - before == pytest.approx(row["cost"], abs=2) and row["cost"] <= 3000 * 1.02


def test_too_small_a_budget_is_left_out_and_other_errors_are_not(small):
    assert not bench.compare(small, torch.ones(12), 0.0, {"permutations": permutation}, [4], 0)

    def broken(*_):
        raise ValueError("a budget is mentioned, but something else is wrong")

    with pytest.raises(ValueError):
        bench.compare(small, torch.ones(12), 0.0, {"broken": broken}, [4], 0)


def test_the_table(x, tmp_path):
    images = {"a": x[:1], "b": x[1:2]}
    model = toy_cnn("fc")
    model.spec = type("Spec", (), {"name": "toy"})()
    table = bench.shapley_benchmark(
        model, images, ["features.3"], out=tmp_path, budgets=(64, 512), peers=1, progress=False
    )
    assert set(table.image) == {"a", "b"} and set(table.budget) == {64, 512, 2048}
    ours = table[(table.estimator == "Owen-CAM") & (table.budget == 512)]
    assert (ours.error < 0.3).all() and (ours.reference_error <= 0.01).all()
    maps = pd.read_csv(tmp_path / "maps.csv")
    assert len(maps) == 2 * len(bench.MAPS) and maps.correlation.between(-1, 1).all()
    assert len(pd.read_csv(tmp_path / "shapley.csv")) == len(table)
    again = bench.shapley_benchmark(
        model, images, ["features.3"], out=tmp_path, budgets=(64, 512), peers=1, progress=False
    )
    np.testing.assert_array_equal(again.error, table.error)


def test_the_photos_are_fresh():
    names = {photo.name for photo in load_photos()}
    assert names > bench.DEVELOPMENT
    model = toy_cnn()
    model.spec = REGISTRY["tf_efficientnet_lite0"]
    assert not bench.DEVELOPMENT & set(bench.photos_for(model, 5))


def test_speeds(lite0):
    photos = bench.photos_for(lite0, 1)
    table = bench.speed_benchmark(lite0, photos, ["blocks.5"], repeats=1).set_index("method")
    assert table.ratio["grad-cam's GradCAM"] == 1 and (table.seconds > 0).all()
