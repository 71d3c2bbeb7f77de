"""The same photo gives the same bytes, wherever and in whatever surroundings; threads move the last digits alone."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from cam_utils import METHODS, paths, preprocess
from cam_utils.data import load_photo

SURROUNDINGS = {
    "plain": {},
    "another locale, timezone and hash seed": {"LC_ALL": "C", "TZ": "Asia/Ho_Chi_Minh", "PYTHONHASHSEED": "7"},
}
EXPLAIN = """
import sys
from cam_utils.cli import app

for name in ("map.png", "map.pdf"):
    app(["explain", *sys.argv[1:], "--out", name], standalone_mode=False)
"""
LAYER = {"cam": "conv_head", "score_cam": "blocks.0"}  # the others at blocks.5; Score-CAM: where channels are few
SMALL = {"shap_cam": {"samples_per_position": 1}, "lime": {"n_samples": 20}}
TOLERANCE = dict.fromkeys(METHODS, 1e-4)  # in float32, of a map's largest value: what one and two threads may differ by
TOLERANCE |= dict.fromkeys(("grad_cam_pp", "xgrad_cam"), 1e-2)  # they divide by sums that nearly cancel


def test_explain_writes_the_same_bytes_in_other_surroundings(tmp_path):
    made = []
    for folder, surroundings in SURROUNDINGS.items():
        here = tmp_path / folder
        here.mkdir()
        command = [sys.executable, "-c", EXPLAIN, str(paths.PHOTOS / "dog.jpg"), "-o", "budget=64"]
        environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"} | surroundings
        subprocess.run(command, cwd=here, env=environment, check=True, capture_output=True)
        made.append({file.name: file.read_bytes() for file in here.iterdir()})
    assert set(made[0]) == {"map.png", "map.pdf"}
    assert made[0] == made[1]


@pytest.mark.parametrize("method", METHODS)
def test_one_and_two_threads_agree_up_to_the_stated_tolerance(lite0, method):
    layer = LAYER.get(method, "blocks.5")
    x = preprocess(load_photo("dog").image, lite0)[..., 48:176, 48:176]
    exact = copy.deepcopy(lite0).double()
    for model, image, tolerance in ((lite0, x, TOLERANCE[method]), (exact, x[..., :64, :64].double(), 1e-9)):
        maps = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            maps.append(METHODS[method](model, layer, image, model(image).argmax(1), **SMALL.get(method, {})))
        assert (maps[0] - maps[1]).abs().max() <= tolerance * maps[0].abs().max()
