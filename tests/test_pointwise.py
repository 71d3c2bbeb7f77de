import pytest
import torch

from cam_utils.layers import split
from cam_utils.models import load_model
from cam_utils.pointwise import parts_of
from conftest import toy_cnn

HEADS = [  # network, layer, number of tensors that leave the pointwise part, is something cached, is all of it additive
    ("tf_efficientnet_lite0", "blocks.5", 1, False, False),
    ("tf_efficientnet_lite0", "bn2", 1, True, True),
    ("resnet18", "layer3", 1, False, False),
    ("resnet18", "layer4", 1, True, True),
    ("mobilenet_v3_small", "features", 1, True, False),
]


@pytest.mark.parametrize("name, layer, tensors, cached, additive", HEADS)
def test_the_parts_make_up_the_head(name, layer, tensors, cached, additive):
    model = load_model(name, weights="random").double()
    features, head = split(model, layer)
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        A = features(x)
        parts, expected = parts_of(head), head(A)
        z = parts.pointwise(A)
        z = (z,) if isinstance(z, torch.Tensor) else z
        torch.testing.assert_close(parts.mixed(*z), expected)
        assert len(z) == tensors and (parts.affine is not None) == cached and parts.additive == additive
        if cached:
            torch.testing.assert_close(parts.rest(parts.affine(*z)), expected)


@pytest.mark.parametrize("layer", ["features.1", "features.4", "features"])
def test_the_pointwise_part_of_a_mixture_is_the_mixture_of_its_parts(toy, x, layer):
    features, head = split(toy, layer)
    with torch.no_grad():
        A, B = features(x[:1]), features(x[1:2])
        mask = (torch.rand(1, 1, *A.shape[2:], generator=torch.Generator().manual_seed(0)) < 0.5).double()
        pointwise = parts_of(head).pointwise
        torch.testing.assert_close(
            pointwise(mask * A + (1 - mask) * B), mask * pointwise(A) + (1 - mask) * pointwise(B)
        )


def test_parts_are_found_once():
    _, head = split(toy_cnn(), "features")
    assert parts_of(head) is parts_of(head)
