import pytest
import torch

from cam_utils import explain
from cam_utils.data import make_shapes
from cam_utils.training import accuracy, classifier, fit, shapes_net


@pytest.fixture(scope="module")
def shapes():
    data = make_shapes(96, seed=0)
    return data, torch.as_tensor(data.images), torch.as_tensor(data.labels)


@pytest.mark.parametrize("head", ["gap", "fc"])
def test_training_learns_and_repeats_to_the_last_bit(head, shapes):
    data, images, labels = shapes
    runs = []
    for _ in range(2):
        model = shapes_net(head, class_names=data.class_names)
        state = torch.get_rng_state()
        losses = fit(
            model,
            images,
            labels,
            epochs=3,
            batch_size=32,
            learning_rate=1e-3,
            generator=torch.Generator().manual_seed(0),
        )
        assert torch.equal(state, torch.get_rng_state()) and not model.training
        runs.append((losses, accuracy(model, images, labels)))
    assert runs[0] == runs[1]
    assert losses[-1] < losses[0]


def test_the_head_can_be_changed(shapes):
    data, images, _ = shapes
    model = shapes_net("fc", class_names=data.class_names)
    model.classifier = classifier("gap", 64, len(data.class_names))
    assert model(images[:2]).shape == (2, len(data.class_names))
    assert explain(model, (images[0].permute(1, 2, 0) * 255).byte().numpy(), method="cam").map.shape == (8, 8)


def test_bad_head():
    with pytest.raises(ValueError, match="gap"):
        shapes_net("vgg", class_names=("a", "b"))
