import pytest
import torch

from cam_utils import METHODS, explain, preprocess
from cam_utils.data import load_photo
from cam_utils.layers import capture


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("score_cam", "ablation_cam", "lime")])
def test_explain_a_photo(method, lite0):
    photo = load_photo("dog")
    result = explain(lite0, photo.path, method=method)
    assert result.target == photo.target and result.label == photo.label and 0.5 < result.score <= 1
    assert result.layer == "bn2" and result.map.shape == (7, 7) and result.seconds > 0
    assert result.n_evaluations >= 1 or method == "owen_cam"  # which needs no pass behind bn2
    heat = result.heatmap(64)
    assert heat.shape == (64, 64) and heat.min() >= 0 and heat.max() <= 1
    assert result.overlay().size == (224, 224) == result.image.size


def test_target_by_name_and_errors(lite0):
    image = load_photo("dog").image
    assert explain(lite0, image, target="tabby").target == 281 == explain(lite0, image, target=281).target
    with pytest.raises(ValueError, match="tabby"):
        explain(lite0, image, target="taby")
    with pytest.raises(ValueError, match="0 to 999"):
        explain(lite0, image, target=1000)
    with pytest.raises(ValueError, match="grad_cam"):
        explain(lite0, image, method="gradcam")
    with pytest.raises(ValueError, match="blocks"):
        explain(lite0, image, layer="blocks.9")


def test_costs_are_counted(lite0):
    image = load_photo("dog").image
    assert explain(lite0, image, method="cam").n_evaluations == 1
    assert explain(lite0, image, method="grad_cam").n_evaluations == 2.5
    assert explain(lite0, image, method="ablation_cam", layer="blocks.5").n_evaluations == 193
    assert explain(lite0, image, method="score_cam", layer="blocks.0").n_evaluations == 18


def test_the_heat_map_is_where_the_dog_is(lite0):
    """The dog of the photo set sits in the middle: the map's mass lies in the central half."""
    heat = explain(lite0, load_photo("dog").image, method="grad_cam").heatmap()
    assert heat[56:168, 56:168].mean() > heat.mean()


def test_preprocessed_input_is_what_the_layers_see(lite0):
    x = preprocess(load_photo("dog").image, lite0)
    with torch.no_grad(), capture(lite0.bn2) as captured:
        lite0(x)
    assert captured.activation.shape == (1, 1280, 7, 7)


def test_unknown_options_are_named(lite0):
    with pytest.raises(ValueError, match="no option bugdet. It has: budget"):
        explain(lite0, load_photo("dog").image, method="owen_cam", bugdet=100)
    with pytest.raises(ValueError, match="none"):
        explain(lite0, load_photo("dog").image, method="grad_cam", budget=100)


def test_explanations_can_be_compared_and_sizes_are_checked(lite0):
    a, b = (explain(lite0, load_photo("dog").image, method="cam") for _ in range(2))
    assert a != b and a == a
    with pytest.raises(ValueError, match="at least one pixel"):
        a.heatmap(0)


def test_explain_works_in_inference_mode(lite0):
    """The class was made there, and a backward pass cannot keep such a tensor."""
    photo = load_photo("dog").path
    expected = explain(lite0, photo, method="grad_cam").map
    with torch.inference_mode():
        assert torch.equal(explain(lite0, photo, method="grad_cam").map, expected)
