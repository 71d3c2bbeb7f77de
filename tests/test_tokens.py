"""Transformers with seeded random weights: shapes and exactness, no claim of meaning."""

import pytest
import timm
import torch
from torch import nn

from cam_utils import METHODS, LayerGame
from cam_utils.layers import split
from cam_utils.tokens import in_grid

NETWORKS = {  # name: (options, layer, maps)
    "vit_tiny_patch16_224": ({"depth": 3}, "blocks.1", (192, 14, 14)),  # class token
    "vit_base_patch16_gap_224": (
        {"depth": 2, "embed_dim": 96, "num_heads": 3, "patch_size": 32},
        "blocks.1",
        (96, 7, 7),
    ),
    "vit_small_patch14_reg4_dinov2": ({"depth": 3, "img_size": (56, 42), "num_classes": 5}, "blocks.1", (384, 4, 3)),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1)}, "layers.3", (768, 7, 7)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request):
    """(network, the same in a grid, the grid's name, x, maps); seeded, in float64."""
    options, layer, maps = NETWORKS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(request.param, **options).double().eval()
        for parameter in network.parameters():  # timm starts near zero: far from a trained network
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
    size = options.get("img_size", (224, 224))
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return network, in_grid(network, layer), f"{layer}.grid", x, maps


@torch.no_grad()
def test_the_network_computes_the_same_and_the_original_stays(case):
    network, grid, layer, x, maps = case
    before = network.state_dict().keys()
    features, head = split(grid, layer)
    activation = features(x)
    assert activation.shape == (1, *maps)
    torch.testing.assert_close(grid(x), network(x), rtol=0, atol=0)
    torch.testing.assert_close(head(activation), network(x))
    assert (head(activation.flip(1)) - network(x)).abs().max() > 1e-6, "the head does not see the tokens"
    assert network.state_dict().keys() == before and not any(
        name.endswith("grid") for name, _ in network.named_modules()
    )
    assert {id(p) for p in grid.parameters()} == {id(p) for p in network.parameters()}, "the weights are shared"


def test_tokens_lie_in_the_grid_as_the_patches_in_the_image(case):
    """Before the blocks mix them: a change of one patch of the image changes the map there alone."""
    network, _, _, x, _ = case
    embedding = "patch_embed" if x.shape[2] == 224 and hasattr(network, "layers") else "norm_pre"
    grid = in_grid(network, embedding)
    changed, patch = x.clone(), network.patch_embed.patch_size[0]
    changed[:, :, patch : 2 * patch, 2 * patch : 3 * patch] += 1  # row 1, column 2
    features, _ = split(grid, f"{embedding}.grid")
    with torch.no_grad():
        difference = (features(changed) - features(x)).abs().amax(1)[0]
    assert (difference > 1e-9).nonzero().tolist() == [[1, 2]]


def test_games_and_methods_work_as_on_a_cnn(case):
    network, grid, layer, x, (_, h, w) = case
    with torch.no_grad():
        probabilities = network(x).softmax(1)[0]
    target = int(probabilities.argmax())
    game = LayerGame(grid, layer, x, target)
    everyone = torch.ones(1, h * w)
    torch.testing.assert_close(game.value(everyone), probabilities[target][None])
    few = {"score_cam", "ablation_cam", "shap_cam", "lime", "cam"}  # slow, or for another head
    for name in METHODS.keys() - few:
        assert METHODS[name](grid, layer, x, target).shape == (1, h, w)
    maps, (estimate,) = METHODS["owen_cam"](grid, layer, x, target, budget=64, payoff="logit", return_estimate=True)
    game = LayerGame(grid, layer, x, target, payoff="logit")
    gain = game.value(everyone) - game.value(0 * everyone)
    assert gain.abs() > 1e-5 and estimate.standard_error.shape == (h * w,)
    torch.testing.assert_close(maps.sum()[None], gain, rtol=1e-6, atol=1e-9)


def test_the_slow_methods_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(
            "vit_tiny_patch16_224", depth=2, img_size=48, embed_dim=24, num_heads=2, num_classes=3
        )
    grid, x = in_grid(network.eval(), "blocks.0"), torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    for name, options in {"score_cam": {}, "ablation_cam": {}, "shap_cam": {"samples_per_position": 4}}.items():
        assert METHODS[name](grid, "blocks.0.grid", x, 1, **options).shape == (1, 3, 3)


def test_what_is_no_grid_is_said():
    network = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=48)
    with pytest.raises(ValueError, match="blocks"):
        in_grid(network, "block")
    del network.patch_embed.grid_size
    network.patch_embed.grid_size = None
    with pytest.raises(ValueError, match="prefix"), torch.no_grad():
        in_grid(network, "blocks.0", prefix=0)(torch.zeros(1, 3, 48, 48))


def test_a_class_token_does_not_read_the_patches_of_the_last_block():
    network = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=48, num_classes=3).eval()
    x = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    for layer, points in (("blocks.0", True), ("blocks.1", False)):
        assert METHODS["grad_cam"](in_grid(network, layer), f"{layer}.grid", x, 1).any() == points
