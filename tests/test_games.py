import pytest
import torch
from torch import nn

from cam_utils import load_model
from cam_utils.cams import cam
from cam_utils.games import LayerGame
from cam_utils.layers import evaluating, split
from cam_utils.shapley import exact
from conftest import same_state, state_of, toy_cnn


def definition(model, layer, x, target, masks, payoff="probability", baseline=None):
    """v(S) written out: features, the mixture, the head, the payoff."""
    features, head = split(model, layer)
    A = features(x)
    base = A.mean((2, 3), keepdim=True) if baseline is None else baseline
    logits = head(base + masks.view(-1, 1, *A.shape[2:]).to(A) * (A - base))
    if payoff == "logit":
        return logits[:, target]
    p = logits.softmax(1)[:, target]
    return p if payoff == "probability" else p.logit()


def coalitions(m, n, seed=0):
    return torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("payoff", ["probability", "logit", "log_odds"])
@pytest.mark.parametrize("layer", ["features.3", "features.4", "features"])
@pytest.mark.parametrize("deferred", [False, True])
def test_value_is_the_definition(toy, x, payoff, layer, deferred):
    game = LayerGame(toy, layer, x[:1], 1, payoff=payoff, deferred=deferred)
    assert game.shape == (6, 6) and game.n_players == 36
    masks = coalitions(9, 36)
    expected = definition(toy, layer, x[:1], 1, masks, payoff)
    torch.testing.assert_close(game.value(masks), expected)
    torch.testing.assert_close(game.value(masks.double()), expected)
    assert game.n_evaluations == 18
    fractional = torch.rand(5, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if not deferred:
        torch.testing.assert_close(game.value(fractional), definition(toy, layer, x[:1], 1, fractional, payoff))


@pytest.mark.parametrize("layer", ["features.3", "features.4", "features"])
@pytest.mark.parametrize("deferred", [False, True])
def test_gradient_is_the_derivative_of_the_value(toy, x, layer, deferred):
    game = LayerGame(toy, layer, x[:1], 1, deferred=deferred)
    masks = 0.1 + 0.8 * torch.rand(2, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, gradient = game.gradient(masks)
    torch.testing.assert_close(value, game.value(masks))
    step, i = 1e-6, 7
    moved = masks.clone()
    moved[:, i] += step
    torch.testing.assert_close((game.value(moved) - value) / step, gradient[:, i], rtol=1e-4, atol=1e-8)
    assert game.n_evaluations == 2 * 2.5 + 2 + 2


def test_a_deferred_game_fades_positions_behind_what_acts_on_each_alone(toy, x):
    before = split(toy, "features.4")[0](x[:1]).mean((2, 3), keepdim=True)  # a ReLU follows
    masks = torch.rand(5, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    behind = LayerGame(toy, "features", x[:1], 1, baseline=before.relu()).value(masks)
    torch.testing.assert_close(LayerGame(toy, "features.4", x[:1], 1, deferred=True).value(masks), behind)
    plain = LayerGame(toy, "features.4", x[:1], 1).value(masks)
    torch.testing.assert_close(plain, definition(toy, "features.4", x[:1], 1, masks))
    assert (plain - behind).abs().max() > 1e-4


@pytest.mark.parametrize("baseline", ["zero", torch.full((1, 4, 1, 1), 0.3), torch.rand(4, 6, 6)])
def test_baselines(toy, x, baseline):
    game = LayerGame(toy, "features", x[:1], 0, baseline=baseline)
    tensor = torch.zeros(1, 4, 1, 1) if isinstance(baseline, str) else baseline
    masks = coalitions(5, 36)
    expected = definition(toy, "features", x[:1], 0, masks, baseline=tensor.double())
    torch.testing.assert_close(game.value(masks), expected)


KINDS = [
    ("tf_efficientnet_lite0", "blocks.5", "head"),
    *(("tf_efficientnet_lite0", layer, "additive") for layer in ("blocks.6", "conv_head", "bn2")),
    ("resnet18", "layer3", "head"),
    ("resnet18", "layer4", "additive"),
    ("googlenet", "inception5b", "additive"),
    ("densenet121", "features", "additive"),
    ("densenet121", "features.denseblock4", "additive"),
    ("mobilenet_v3_small", "features", "cached"),
    ("convnext_tiny", "features", "cached"),
    ("efficientnet_b0", "features", "additive"),
    ("alexnet", "features.11", "head"),  # a max pooling follows
    ("alexnet", "features.12", "cached"),
]


@pytest.mark.parametrize("name, layer, kind", KINDS)
def test_fast_paths_are_found_and_agree_with_the_network(name, layer, kind):
    model = load_model(name, weights="random").double()
    size = (224, 224) if name == "alexnet" else (128, 96)  # AlexNet pools small maps up, then there is nothing to save
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    game = LayerGame(model, layer, x, 7, payoff="log_odds")
    assert game.kind == kind
    masks = coalitions(6, game.n_players)
    with torch.no_grad():
        expected = definition(model, layer, x, 7, masks, "log_odds")
    torch.testing.assert_close(game.value(masks), expected, rtol=1e-8, atol=1e-8)


def test_an_additive_head_costs_no_pass(x):
    model = toy_cnn("gap")
    game = LayerGame(model, "features", x[:1], 0)
    calls = []
    handle = model.classifier[3].register_forward_hook(lambda *_: calls.append(1))
    game.value(coalitions(100, 36))
    assert game.kind == "additive" and not calls
    handle.remove()


def test_what_a_fully_connected_layer_makes_of_each_position_is_kept(x):
    assert LayerGame(toy_cnn("fc"), "features", x[:1], 0).kind == "cached"


def test_a_head_that_only_looks_affine_is_not_cached(x):
    """A forward hook of the caller bends the pooling: the check at construction must find out."""
    model = toy_cnn("gap")
    model.classifier[0].register_forward_hook(lambda module, inputs, output: output**2)
    game = LayerGame(model, "features", x[:1], 0)
    assert game.kind == "head"
    masks = coalitions(5, 36)
    torch.testing.assert_close(game.value(masks), definition(model, "features", x[:1], 0, masks))


class Skip(nn.Module):
    """Data flows around the layer: the head cannot be cut off, a hook serves."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.linear = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.linear((x * self.inner(x).tanh()).mean((2, 3)))


def test_networks_that_cannot_be_cut(x):
    model = Skip().double().eval()
    game = LayerGame(model, "inner", x[:1], 0)
    masks = coalitions(4, game.n_players)
    torch.testing.assert_close(game.value(masks), definition(model, "inner", x[:1], 0, masks))
    assert game.gradient(masks)[1].shape == (4, game.n_players)
    with pytest.raises(ValueError, match="0 to 1"):
        LayerGame(model, "inner", x[:1], 2).value(masks)


def test_cam_is_shap_cam_at_a_gap_head(x):
    """Fact 1: with the logit, the Shapley value of position i is (w·A_i - mean) / n, whatever the order of the players."""
    model, image = toy_cnn("gap"), x[:1, :, :6, :6]  # 3×3 positions: exact enumeration is possible
    game = LayerGame(model, "features", image, 2, payoff="logit")
    M = cam(model, "features", image, 2)[0].flatten()
    torch.testing.assert_close(exact(game).values, (M - M.mean()) / 9)
    ends = game.value(torch.tensor([[0.0], [1.0]]).expand(2, 9))
    torch.testing.assert_close(ends[0], ends[1])  # v(none) = v(all): the values sum to zero


def test_batches_do_not_matter(toy, x, monkeypatch):
    masks = coalitions(50, 36)
    game = LayerGame(toy, "features.3", x[:1], 1)
    value, gradient = game.value(masks), game.gradient(masks)[1]
    monkeypatch.setattr("cam_utils.games._BATCH_ELEMENTS", 1)
    assert game._batch(game._mixed) == 1
    torch.testing.assert_close(game.value(masks), value)
    torch.testing.assert_close(game.gradient(masks)[1], gradient)


def test_the_model_is_left_alone_and_callers_may_be_in_any_mode(x):
    model = toy_cnn("fc").train().requires_grad_(False)
    before = state_of(model)
    with torch.inference_mode():
        game = LayerGame(model, "features", x[:1], 0)
        game.gradient(coalitions(2, 36))
    with evaluating(model):
        expected = definition(model, "features", x[:1], 0, coalitions(2, 36))
    torch.testing.assert_close(game.value(coalitions(2, 36)), expected)
    assert not game.value(coalitions(2, 36)).is_inference()  # or it could take no part in an autograd of the caller's
    assert same_state(before, state_of(model))


def test_bad_input(toy, x):
    for arguments, message in [
        (("features", x, 0), "one image"),
        (("features", x[:1], 0, "score"), "payoff"),
        (("features", x[:1], 0, "logit", "blur"), "baseline"),
        (("features", x[:1], 0, "logit", torch.zeros(5)), "broadcast"),
        (("classifier", x[:1], 0), "feature maps"),
        (("features", x[:1] * torch.nan, 0), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            LayerGame(toy, *arguments)
    game = LayerGame(toy, "features", x[:1], 0)
    with pytest.raises(ValueError, match="36"):
        game.value(torch.zeros(2, 35))
    with pytest.raises(ValueError, match=r"\[0,1\]"):
        game.value(torch.full((2, 36), 1.5))
    with pytest.raises(ValueError, match="0 to 2"):
        LayerGame(toy, "features", x[:1], 3).value(torch.zeros(1, 36))
    assert game.value(torch.zeros(0, 36)).shape == (0,)


def test_batch_norm_without_statistics_mixes_positions(x):
    model = toy_cnn("gap")
    model.classifier.insert(0, nn.BatchNorm2d(4, track_running_stats=False).double())
    game = LayerGame(model, "features", x[:1], 0, deferred=True)
    masks = coalitions(1, 36)  # alone: it would mix the coalitions of a batch as well
    torch.testing.assert_close(game.value(masks), definition(model, "features", x[:1], 0, masks))


def test_a_pointwise_module_that_is_not_one_is_found_out(x):
    """A forward hook of the caller mixes the positions: the masks must not be put behind it."""
    model = toy_cnn("fc")
    model.classifier.insert(0, nn.ReLU())
    model.classifier[0].register_forward_hook(lambda module, inputs, output: output.flip(3) * output.mean((2, 3), True))
    game = LayerGame(model, "features", x[:1], 0, deferred=True)
    masks = coalitions(5, 36)
    torch.testing.assert_close(game.value(masks), definition(model, "features", x[:1], 0, masks))


def test_half_precision_takes_no_shortcut(x):
    model = toy_cnn("gap").bfloat16()
    game = LayerGame(model, "features", x[:1].bfloat16(), 0)
    assert game.kind == "head" and game.value(coalitions(3, 36)).dtype == torch.float32


def test_memory_is_bounded_where_the_cache_does_not_serve(x):
    """Slopes at the layer of a cached game go through the whole head: its batches are the head's."""
    game = LayerGame(toy_cnn("gap"), "features.4", x[:1], 0)
    assert game.kind == "additive" and game._batch(game._at_layer) <= 32 < game._batch(game._mixed)


def test_a_model_that_puts_out_a_tuple(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            x = self.linear(self.stem(x).mean((2, 3)))
            return x, x

    with pytest.raises(ValueError, match=r"logits \(N,K\), not tuple"):
        LayerGame(Two().double(), "stem", x[:1], 0)


def test_where_only_pooling_follows_the_players_are_not_tried_one_by_one(monkeypatch):
    """EfficientNet-Lite's 49 positions are then as many maps of one position, not 49 maps of 49."""
    monkeypatch.setattr(LayerGame, "_rows_one_by_one", lambda *_: pytest.fail("all players are played one by one"))
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    game = LayerGame(toy_cnn("gap"), "features", x, 1, payoff="logit")
    assert game.kind == "additive"
    head = LayerGame(toy_cnn("gap"), "features", x, 1, payoff="logit")
    head._mixed, head._cache = head._at_layer, None
    masks = (torch.rand(5, 36, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    torch.testing.assert_close(game.value(masks), head.value(masks))
