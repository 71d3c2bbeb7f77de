import pytest
import torch

from cam_utils import METHODS
from cam_utils.packages import COUNTERPARTS, side_by_side
from conftest import same_state, state_of, toy_cnn

EQUAL = [  # by definition, up to rounding
    *(("grad_cam", package) for package in ("grad-cam", "torchcam", "Captum")),
    *(("hires_cam", package) for package in ("grad-cam", "Captum")),
    *((method, package) for method in ("layer_cam", "xgrad_cam") for package in ("grad-cam", "torchcam")),
]


def test_every_counterpart_gives_a_map_and_leaves_the_network_as_it_was(x):
    model = toy_cnn("fc").float().requires_grad_(False)  # grad-cam would fill the gradients of its parameters
    before, threads = state_of(model), torch.get_num_threads()
    found = side_by_side(model, "features", {"a": x[:1].float()}, repeats=1)
    assert list(zip(found.method, found.package, strict=True)) == [
        (method, package) for method, others in COUNTERPARTS.items() for package in ("cam_utils", *others)
    ]
    assert set(found.method) < set(METHODS) and (found.seconds > 0).all()
    assert same_state(before, state_of(model)) and torch.get_num_threads() == threads


@pytest.mark.parametrize("method, package", EQUAL)
def test_what_is_defined_alike_agrees(method, package, x):
    model, target = toy_cnn("fc").float().requires_grad_(False), 2  # the maps of the others are negative everywhere
    found = COUNTERPARTS[method][package](model, "features", x[:1].float(), target)
    ours = METHODS[method](model, "features", x[:1].float(), target)[0]
    assert found.shape == ours.shape and (found > 0).any()
    torch.testing.assert_close(found.relu(), ours.relu(), rtol=1e-3, atol=1e-7)
