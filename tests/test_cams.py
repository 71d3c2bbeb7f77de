import pytest
import pytorch_grad_cam as package
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from cam_utils import METHODS, load_model, preprocess
from cam_utils.cams import (
    ablation_cam,
    cam,
    grad_cam,
    grad_cam_pp,
    hires_cam,
    layer_cam,
    score_cam,
    xgrad_cam,
)
from cam_utils.data import load_photo
from cam_utils.layers import counting
from cam_utils.postprocess import rectify, upsample
from cam_utils.shap_cam import owen_cam, shap_cam
from conftest import same_state, state_of, toy_cnn

PASSES = {score_cam: {"batch_size": 3}, ablation_cam: {"batch_size": 3}}
TARGET = torch.tensor([0, 2, 1])


def centred(maps):
    return maps - maps.mean((1, 2), keepdim=True)


class Two(nn.Module):
    """Two channels on a 1×2 grid, y = (a1·w1)² + 3·a2: every number below is computed by hand.

    A = [[1, 2], [3, -1]] for x = ones; y = (1·1 + 2·2)² + 3·(3 - 1) = 25 + 6 = 31.
    dy/dA1 = 2·5·(1, 2) = (10, 20), dy/dA2 = (3, 3).
    """

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        A = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]], dtype=x.dtype, device=x.device)
        A = self.layer(x.mean((1, 2, 3))[:, None, None, None] * A)
        y = (A[:, 0, 0] @ torch.tensor([1.0, 2.0], dtype=x.dtype)) ** 2 + 3 * A[:, 1].sum((1, 2))
        return torch.stack([y, -y], 1)


@pytest.mark.parametrize(
    "method, expected",
    [
        (grad_cam, [15 * 1 + 3 * 3, 15 * 2 - 3]),  # mean gradients 15 and 3
        (hires_cam, [10 * 1 + 3 * 3, 20 * 2 - 3]),
        (layer_cam, [10 * 1 + 3 * 3, 20 * 2 - 3]),  # no negative gradient here
        (xgrad_cam, [50 / 3 * 1 + 3 * 3, 50 / 3 * 2 - 3]),  # (10·1 + 20·2)/3 and (3·3 - 3)/2
        (  # alpha = 1 / (2 + ΣA·G): 1/(2+30), 1/(2+60); 1/(2+2·3)
            grad_cam_pp,
            [(10 / 32 + 20 / 62) * 1 + 6 / 8 * 3, (10 / 32 + 20 / 62) * 2 - 6 / 8],
        ),
        (ablation_cam, [25 / 31 * 1 + 6 / 31 * 3, 25 / 31 * 2 - 6 / 31]),
    ],
)
def test_by_hand(method, expected):
    x = torch.ones(1, 3, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(method(Two(), "layer", x, 0), torch.tensor([[expected]], dtype=torch.float64))


def test_layer_cam_drops_negative_gradients():
    x = torch.ones(1, 3, 1, 2, dtype=torch.float64)
    assert (layer_cam(Two(), "layer", x, 1) == 0).all()  # all gradients of -y are negative
    torch.testing.assert_close(hires_cam(Two(), "layer", x, 1), -hires_cam(Two(), "layer", x, 0))


def test_score_cam_by_hand():
    """x = (1, 3) on a 1×2 image; channels (0, 1) and (1, 0) are their own min-max masks.

    The logit is the sum of the pixels: masks give 3·3 = 9 and 3·1 = 3 (three colours), zero gives 0; weights = softmax(9, 3).
    """

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            A = self.layer(torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]], dtype=x.dtype).expand(len(x), 2, 1, 2))
            return torch.stack([x.sum((1, 2, 3)) + 0 * A.sum((1, 2, 3)), A.sum((1, 2, 3))], 1)

    x = torch.tensor([1.0, 3.0], dtype=torch.float64).expand(1, 3, 1, 2)
    w = torch.tensor([9.0, 3.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(score_cam(Sum(), "layer", x, 0), torch.stack([w[1], w[0]]).view(1, 1, 2))


def test_score_cam_runs_the_network_once_for_several_classes_of_an_image(x):
    model, same = toy_cnn("fc"), x[:1].repeat(3, 1, 1, 1)
    images = torch.cat([same, x[1:]])
    with counting() as counter:
        maps = score_cam(model, "features", images, torch.cat([TARGET, TARGET[1:]]))
    one_by_one = [
        score_cam(model, "features", image[None], c) for image, c in zip(images, [0, 2, 1, 2, 1], strict=True)
    ]
    torch.testing.assert_close(maps, torch.cat(one_by_one))
    channels = model.features(x).shape[1]
    assert counter.total == len(images) + 3 * (channels + 1)


def test_gap_heads_make_grad_cam_and_hires_cam_the_cam(x):
    model = toy_cnn("gap")
    expected = cam(model, "features", x, TARGET)
    n = expected[0].numel()
    torch.testing.assert_close(grad_cam(model, "features", x, TARGET) * n, expected)
    torch.testing.assert_close(hires_cam(model, "features", x, TARGET) * n, expected)
    torch.testing.assert_close(xgrad_cam(model, "features", x, TARGET) * n, expected)


def test_cam_mean_plus_bias_is_the_logit(x):
    model = toy_cnn("gap")
    logit = model(x).gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(cam(model, "features", x, TARGET).mean((1, 2)) + model.classifier[3].bias[TARGET], logit)


@pytest.mark.parametrize(
    "name, layer",
    [("densenet121", "features"), ("resnet18", "layer4"), ("tf_efficientnet_lite0", "blocks.6")],
)
def test_cam_goes_through_what_acts_on_each_position_alone(name, layer):
    model = load_model(name, weights="random").double()
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].bias
    torch.testing.assert_close(cam(model, layer, x, 5).mean((1, 2)) + bias[5], model(x)[:, 5])


@pytest.mark.parametrize("layer", ["features.3", "features"])
def test_cam_refuses_other_heads(x, layer):
    with pytest.raises(ValueError, match="global average pooling"):
        cam(toy_cnn("fc"), layer, x, TARGET)
    if layer == "features.3":
        with pytest.raises(ValueError, match="global average pooling"):
            cam(toy_cnn("gap"), layer, x, TARGET)


@pytest.mark.parametrize("layer", ["features.3", "features.4", "features"])
def test_captum_agrees(toy, x, layer):
    expected = LayerGradCam(toy, toy.get_submodule(layer)).attribute(x, target=TARGET)[:, 0]
    torch.testing.assert_close(grad_cam(toy, layer, x, TARGET), expected.detach())


PEERS = {
    grad_cam: package.GradCAM,
    grad_cam_pp: package.GradCAMPlusPlus,
    hires_cam: package.HiResCAM,
    layer_cam: package.LayerCAM,
    xgrad_cam: package.XGradCAM,
    ablation_cam: package.AblationCAM,
    score_cam: package.ScoreCAM,
}


def correlation_with_package(method, model, layer, x, target):
    """The package rectifies, rescales and upsamples its maps, so ours are put through the same before they are compared."""
    with PEERS[method](model=model, target_layers=[model.get_submodule(layer)]) as peer:
        expected = torch.as_tensor(peer(x.clone().requires_grad_(), targets=[ClassifierOutputTarget(target)]))[0]
    ours = upsample(rectify(method(model, layer, x, target)), tuple(x.shape[2:]))[0]
    return torch.corrcoef(torch.stack([expected.double().flatten(), ours.double().flatten()]))[0, 1]


@pytest.mark.parametrize("method", PEERS)
def test_grad_cam_package_agrees(method, toy, x):
    model = toy.float()
    target = int(model(x[:1].float()).argmax())
    # the package aligns corners when it upsamples Score-CAM's masks, and adds 1e-6 in Grad-CAM++'s denominator
    bound = {score_cam: 0.97, grad_cam_pp: 0.999}.get(method, 0.9999)
    assert correlation_with_package(method, model, "features", x[:1].float(), target) > bound


@pytest.mark.parametrize("method", [grad_cam, hires_cam, layer_cam, xgrad_cam])
@pytest.mark.parametrize("layer", ["blocks.4", "blocks.5"])
def test_grad_cam_package_agrees_on_a_photo(method, layer, lite0):
    photo = load_photo("dog")
    assert correlation_with_package(method, lite0, layer, preprocess(photo.image, lite0), photo.target) > 0.9999


MAPS_OF_A_LAYER = {name: method for name, method in METHODS.items() if name != "lime"}


@pytest.mark.parametrize("method", MAPS_OF_A_LAYER.values(), ids=MAPS_OF_A_LAYER)
class TestEveryMethod:
    def test_batch_is_loop(self, method, x):
        model = toy_cnn("gap")
        batch = method(model, "features", x, TARGET)
        loop = torch.cat([method(model, model.features, x[i : i + 1], TARGET[i : i + 1]) for i in range(3)])
        assert batch.shape == (3, 6, 6) and not batch.requires_grad
        torch.testing.assert_close(batch, loop)

    def test_not_square(self, method, x):
        assert method(toy_cnn("gap"), "features", x[..., :8], TARGET).shape == (3, 6, 4)

    def test_trained_frozen_no_grad_and_inference_mode_callers(self, method, x):
        expected = method(toy_cnn("gap"), "features", x, TARGET)
        model = toy_cnn("gap").train().requires_grad_(False)
        before = state_of(model)
        with torch.no_grad():
            torch.testing.assert_close(method(model, "features", x, TARGET), expected)
        with torch.inference_mode():
            torch.testing.assert_close(method(model, "features", x, TARGET), expected)
        assert same_state(before, state_of(model))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_precision(self, method, x, dtype):
        expected = method(toy_cnn("gap"), "features", x, TARGET)
        maps = method(toy_cnn("gap").to(dtype), "features", x.to(dtype), TARGET)
        assert maps.dtype == dtype
        tolerance = 1e-4 if dtype == torch.float32 else 0.3 if method in (shap_cam, owen_cam) else 0.1
        torch.testing.assert_close(
            maps.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
    def test_cuda(self, method, x):
        maps = method(toy_cnn("gap").cuda(), "features", x.cuda(), TARGET.cuda())
        torch.testing.assert_close(maps.cpu(), method(toy_cnn("gap"), "features", x, TARGET))

    def test_bad_input(self, method, x):
        model = toy_cnn("gap")
        before = state_of(model)
        for bad, message in [
            ((model, "features", x, torch.tensor([0, 1, 3])), "0 to 2"),
            ((model, "features", x, torch.tensor([0, -1, 1])), "0 to 2"),
            ((model, "features", x, torch.tensor([0, 1])), "for each of the 3 images"),
            ((model, "features", x, torch.tensor([0.5, 1, 2])), "integer class id"),
            ((model, "features", x * float("nan"), TARGET), "NaN"),
            ((model, "features", x[0], TARGET), r"\(N,3,H,W\)"),
            ((model, "features", x[:0], TARGET), r"\(N,3,H,W\)"),
            ((model, "nowhere", x, TARGET), "no layer 'nowhere'"),
            ((model, "classifier", x, TARGET), "feature maps"),
        ]:
            with pytest.raises(ValueError, match=message):
                method(*bad)
        assert same_state(before, state_of(model))

    def test_an_exception_leaves_nothing(self, method, x):
        model = toy_cnn("gap").train()
        for stage in ("features.0", "classifier.3"):
            handle = model.get_submodule(stage).register_forward_pre_hook(lambda *_: 1 / 0)
            before = state_of(model)
            with pytest.raises(ZeroDivisionError):
                method(model, "features", x, TARGET)
            assert same_state(before, state_of(model)) and torch.is_grad_enabled()
            handle.remove()

    def test_a_constant_activation_gives_no_nan(self, method, x):
        assert method(toy_cnn("gap"), "features", torch.zeros_like(x), TARGET).isfinite().all()
        model = toy_cnn("gap")
        nn.init.zeros_(model.features[4].weight), nn.init.zeros_(model.features[4].bias)
        assert (method(model, "features", x, TARGET) == 0).all()


@pytest.mark.parametrize("method", PASSES)
def test_chunk_size_does_not_matter(method, toy, x):
    small, large = (method(toy, "features", x, TARGET, batch_size=size) for size in (3, 64))
    torch.testing.assert_close(small, large)
    with pytest.raises(ValueError, match="batch_size"):
        method(toy, "features", x, TARGET, batch_size=0)


@pytest.mark.parametrize("method", PASSES)
def test_progress_bar(method, toy, x, capsys):
    method(toy, "features", x, TARGET, progress=True)
    assert "CAM" in capsys.readouterr().err
    method(toy, "features", x, TARGET, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("method", PASSES)
def test_memory_is_bounded_by_the_batch_size(method, x):
    seen = []
    model = toy_cnn("gap", channels=20)
    model.classifier[3].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    method(model, "features", x[:1], TARGET[:1], batch_size=7)
    assert max(seen) == 7 and sum(seen) >= 20


def test_input_made_in_inference_mode(x):
    with torch.inference_mode():
        made = x.clone()
    model = toy_cnn()
    torch.testing.assert_close(grad_cam(model, "features", made, 0), grad_cam(model, "features", x, 0))
