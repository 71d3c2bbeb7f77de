import pytest
import torch
from pytorch_grad_cam import GradCAM
from torch import nn

from cam_utils.layers import candidate_layers, capture, counting, evaluating, folded, resolve_layer, split
from cam_utils.models import REGISTRY, load_model
from cam_utils.shap_cam import owen_cam
from conftest import same_state, state_of, toy_cnn

BLOCKS = {  # every block boundary: children of the stages of each architecture
    "tf_efficientnet_lite0": [
        "conv_stem",
        "bn1",
        *(f"blocks.{i}" for i in range(7)),
        "blocks.3.1",
        "conv_head",
        "bn2",
    ],
    "alexnet": [f"features.{i}" for i in range(13)] + ["features"],
    "vgg16": [f"features.{i}" for i in range(0, 31, 3)] + ["features"],
    "googlenet": [
        "conv3",
        "inception3a",
        "inception3b",
        "inception4a",
        "inception4e",
        "inception5a",
        "inception5b",
    ],
    "resnet18": ["maxpool", "layer1", "layer1.0", "layer2", "layer3", "layer4.0", "layer4"],
    "densenet121": [
        "features.pool0",
        *(f"features.denseblock{i}" for i in (1, 2, 3, 4)),
        "features.transition3",
        "features",
    ],
    "mobilenet_v3_small": [f"features.{i}" for i in range(13)] + ["features"],
    "convnext_tiny": [f"features.{i}" for i in range(8)] + ["features.5.4", "features"],
    "efficientnet_b0": [f"features.{i}" for i in range(9)] + ["features"],
}
SAME_BLOCKS = {
    "tf_efficientnet_lite1": "tf_efficientnet_lite0",
    "tf_efficientnet_lite2": "tf_efficientnet_lite0",
    "resnet34": "resnet18",
    "resnet50": "resnet18",
    "resnet101": "resnet18",
    "resnet152": "resnet18",
    "mobilenet_v3_large": "mobilenet_v3_small",
}


@pytest.mark.parametrize("name", REGISTRY)
def test_head_of_features_is_the_model_at_every_block(name):
    model = load_model(name, weights="random").double()
    x = torch.randn(
        2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )  # a batch, not square
    with torch.no_grad():
        expected = model(x)
        for layer in BLOCKS[SAME_BLOCKS.get(name, name)]:
            features, head = split(model, layer)
            assert isinstance(head, torch.fx.GraphModule), f"{name} is not cut at {layer} but run through a hook"
            activation = features(x)
            before = activation.clone()
            torch.testing.assert_close(head(activation), expected, rtol=1e-10, atol=1e-10)
            assert torch.equal(activation, before), "the head changed its input"


def test_split_costs_the_head_alone():
    model = toy_cnn()
    _, head = split(model, "features")
    assert not [m for m in head.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("layer", ["features", "features.4"])
def test_hooks_that_watch_do_not_cost_the_cut(x, layer):
    """grad-cam's hooks ask whether the output requires a gradient, which cannot be traced."""
    model = toy_cnn()
    with GradCAM(model=model, target_layers=[model.get_submodule(layer)]):
        features, head = split(model, layer)
        assert isinstance(head, torch.fx.GraphModule)
        torch.testing.assert_close(head(features(x)), model(x))


def test_split_forgets_a_cut_when_the_classifier_is_replaced(x):
    model = toy_cnn()
    split(model, "features")
    model.classifier[3] = nn.Linear(4, 7).double()
    features, head = split(model, "features")
    torch.testing.assert_close(head(features(x)), model(x))


class Skip(nn.Module):
    """Data flows around `inner`, and a branch on the values cannot be traced."""

    def __init__(self, traceable: bool):
        super().__init__()
        self.traceable, self.stem = traceable, nn.Conv2d(3, 4, 3, padding=1)
        self.inner, self.linear = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        if not self.traceable and x.sum() > 1e9:
            x = -x
        return self.linear((x + self.inner(x)).mean((2, 3)))


@pytest.mark.parametrize("traceable", [True, False])
def test_split_falls_back_to_a_hook(traceable):
    model, image = Skip(traceable).eval(), torch.randn(1, 3, 8, 8)
    features, head = split(model, "inner")
    activation = features(image)
    torch.testing.assert_close(head(activation), model(image))
    changed = torch.cat([activation, activation * 0])
    inner_off = model.linear(model.stem(image).mean((2, 3)))
    torch.testing.assert_close(head(changed)[1:], inner_off)
    features(image.repeat(3, 1, 1, 1))
    with pytest.raises(ValueError, match="one image"):
        head(changed)


def test_in_place_operations_after_the_layer_are_undone(x):
    model = toy_cnn()
    with capture(model.features[4]) as captured:  # the in-place ReLU follows
        model(x)
    assert (captured.activation < 0).any()


def test_capture_gradient_under_no_grad_on_a_frozen_model(x):
    model = toy_cnn().requires_grad_(False)
    with torch.no_grad(), capture(model.features, gradient=True) as captured:
        y = model(x)[:, 0].sum()
        (gradient,) = torch.autograd.grad(y, captured.activation)
    assert gradient.shape == captured.activation.shape and torch.is_grad_enabled()
    torch.testing.assert_close(gradient, (model.classifier[3].weight[0] / 36)[None, :, None, None].expand_as(gradient))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(self.conv(x)).mean((2, 3))


def test_capture_says_what_is_wrong(x):
    model, toy = Twice(), toy_cnn()
    with pytest.raises(ValueError, match="twice"), capture(model.conv):
        model(x.float())
    with pytest.raises(ValueError, match="not reached"), capture(model.unused):
        model(x.float())
    with pytest.raises(ValueError, match=r"feature maps \(N,C,h,w\), not \(3, 3\)"), capture(toy.classifier):
        toy(x)
    assert all(not m._forward_hooks for m in [*model.modules(), *toy.modules()])


@pytest.mark.parametrize("stage", ["features.2", "features.4", "classifier.3"])
def test_nothing_is_left_after_an_exception(x, stage):
    model = toy_cnn().train()
    model.features[0].eval()  # a mixture of modes must survive
    next(model.parameters()).requires_grad_(False)

    def fail(*_):
        raise RuntimeError("injected")

    handle = model.get_submodule(stage).register_forward_pre_hook(fail)
    before = state_of(model)
    with (
        pytest.raises(RuntimeError, match="injected"),
        evaluating(model),
        capture(model.features, gradient=True),
    ):
        model(x)
    features, head = split(model, "features")
    with pytest.raises(RuntimeError, match="injected"), evaluating(model):
        head(features(x))
    assert same_state(before, state_of(model)) and torch.is_grad_enabled()
    handle.remove()


def test_evaluating_restores_each_module(x):
    model = toy_cnn().train()
    model.features[1].eval()
    before = state_of(model)
    with evaluating(model):
        assert not any(m.training for m in model.modules())
        model(x)
    assert same_state(before, state_of(model))


def test_resolve_layer_names_candidates():
    model = toy_cnn()
    assert resolve_layer(model, "features.4") is model.features[4] is resolve_layer(model, model.features[4])
    with pytest.raises(ValueError, match="features"):
        resolve_layer(model, "feature")
    with pytest.raises(ValueError, match="not part of the model"):
        resolve_layer(model, nn.ReLU())


def test_counting_nests(x):
    model = toy_cnn()
    with counting() as outer:
        with counting() as inner, torch.no_grad(), capture(model.features, gradient=True):
            model(x)
        assert inner.total == 7.5
    assert outer.total == 0


def test_a_cut_is_made_anew_when_a_parameter_of_the_root_is_replaced(x):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.stem(x).mean((2, 3)) * self.scale

    model = Scaled().double().eval()
    with torch.no_grad():
        _, head = split(model, "stem")
        model.scale = nn.Parameter(torch.full((4,), 3.0, dtype=torch.float64))
        features, head = split(model, "stem")
        torch.testing.assert_close(head(features(x)), model(x))


def test_capturing_a_gradient_leaves_the_callers_mode(toy, x):
    with torch.no_grad(), capture(toy.features, gradient=True):
        toy(x)
        assert torch.is_grad_enabled()
    with torch.no_grad():
        with capture(toy.features, gradient=True):
            toy(x)
        assert not torch.is_grad_enabled()


def test_a_shared_module_is_found_under_each_of_its_names():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.add_module("again", model[0])
    assert resolve_layer(model, "again") is resolve_layer(model, "0")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tf_efficientnet_lite0", {"blocks.0": 112, "blocks.1": 56, "blocks.2": 28, "blocks.4": 14, "bn2": 7}),
        ("resnet18", {"relu": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7}),
        ("convnext_tiny", {"features.2.0": 56, "features.4.0": 28, "features.6.0": 14, "features": 7}),
    ],
)
def test_candidate_layers_are_the_last_at_every_resolution(name, expected):
    model = load_model(name, weights="random")
    layers, output = candidate_layers(model, torch.zeros(1, 3, 224, 224))
    assert list(layers.items()) == list(expected.items()) and output.shape == (1, 1000)


def test_a_module_that_is_used_twice_and_attention_weights_are_no_candidates():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.softmax = nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Softmax(-1)

        def forward(self, x):
            maps = self.relu(self.relu(self.conv(x)))
            tokens = maps.flatten(2)
            return (tokens @ self.softmax(tokens.mT[:, None] @ tokens[:, None])[:, 0]).mean(2)

    assert candidate_layers(Attention(), torch.rand(1, 3, 16, 16))[0] == {"conv": 4}
    with pytest.raises(ValueError, match="no layer with feature maps"):
        candidate_layers(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2))


def test_folded_batch_norms_leave_the_function_the_names_and_the_network_as_they_were(lite0):
    x, names, before = torch.randn(2, 3, 96, 96), set(dict(lite0.named_modules())), state_of(lite0)
    twin = folded(lite0, "blocks.5", x[:1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert set(dict(twin.named_modules())) <= names and twin.spec == lite0.spec
    assert same_state(before, state_of(lite0))
    torch.testing.assert_close(twin(x), lite0(x), rtol=0, atol=1e-4)
    maps = [owen_cam(network, "blocks.5", x, torch.tensor([1, 2])) for network in (lite0, twin)]
    torch.testing.assert_close(*maps, rtol=0, atol=1e-4 * maps[0].abs().max().item())


@pytest.mark.parametrize(
    "reason, layer, modules",
    [
        ("the batch norm comes first", "2", [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)]),
        ("something lies between", "3", [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]),
        ("the layer is the convolution itself", "0", [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]),
    ],
)
def test_what_cannot_be_folded_is_left_as_it_is(reason, layer, modules):
    model = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    for norm in filter(lambda module: isinstance(module, nn.BatchNorm2d), model):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 4, 5, 5)
    expected, twin = model(x), folded(model, layer, x)
    with capture(twin.get_submodule(layer)) as captured:
        torch.testing.assert_close(twin(x), expected)
    with capture(model.get_submodule(layer)) as own:
        model(x)
    torch.testing.assert_close(captured.activation, own.activation, rtol=0, atol=1e-5)
    if reason != "the batch norm comes first":
        assert twin is model
