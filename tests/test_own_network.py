"""docs/own_network.md runs as printed, in an empty folder, and what it shows is right."""

import contextlib
import io
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cam_utils import cli, paths
from cam_utils.localisation import energy_pointing_game


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """(the folder that the guide has worked in, the names it has made, the output of its commands)."""
    folder = tmp_path_factory.mktemp("guide")
    blocks = re.findall(r"```(python|sh)\n(.*?)```", (paths.ROOT / "docs/own_network.md").read_text("utf-8"), re.S)
    names, said = {}, []
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for language, code in blocks:
            if file := re.match(r"# (\w+\.py)\n", code):
                (folder / file[1]).write_text(code, "utf-8")
            elif language == "python":
                exec(code, names)
            else:
                assert code.startswith("python -m cam_utils ") and code.count("\n") == 1
                patch.setattr(sys, "argv", ["cam-utils", *shlex.split(code)[3:]])
                with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as left:
                    cli.main()
                assert not left.value.code
                said.append(output.getvalue())
        patch.delitem(sys.modules, "my_network")
    return folder, names, said


def test_the_network_of_the_guide_is_explained_and_its_map_points_at_the_shape(guide):
    folder, names, said = guide
    result, mask = names["result"], names["fresh"].masks[names["photo"]]
    assert result.label == "ring" and result.score > 0.7
    energy = float(energy_pointing_game(result.heatmap()[None], torch.from_numpy(mask)[None]))
    assert energy > 2 * mask.mean(), "no better than chance"
    assert f'owen_cam of "ring" (class 1, {result.score:.1%}) at 0' in said[0] and "star" in said[0]
    assert Image.open(folder / "photo_owen_cam.png").width > 500 and Image.open(folder / "overlay.png").size == (64, 64)


def test_the_weights_are_read_from_the_file(guide):
    _, names, _ = guide
    images, labels = names["images"], (names["labels"][names["wanted"]] == names["ring"]).long()
    with torch.no_grad():
        assert (names["model"].eval()(images).argmax(1) == labels).double().mean() > 0.85


def test_the_depth_of_the_guide(guide):
    folder, names, said = guide
    assert list(names["layers"].values()) == [64, 32, 8] and list(names["layers"])[-1] == "0"
    assert [tuple(e.map.shape) for e in names["depth"]] == [(64, 64), (32, 32), (8, 8)]
    assert said[1].count("hires_cam of") == 3 and "at 0:" in said[1].splitlines()[-2]
    assert (folder / "depth.png").exists() and (folder / "depth.pdf").read_bytes().startswith(b"%PDF")


def test_tokens_of_the_guide(guide):
    _, names, _ = guide
    assert names["tokens"].shape == (1, 14, 14) and names["token_game"].n_players == 196


def test_the_other_packages_agree_with_the_definition(guide):
    _, names, _ = guide
    truth = names["truth"]
    for name in ("by_shapiq", "by_captum"):
        error = (names[name].double() - truth).norm() / truth.norm()
        assert error < 0.1 and np.corrcoef(names[name], truth)[0, 1] > 0.99, f"{name}: {error:.3f}"
