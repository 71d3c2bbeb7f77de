import datetime

import pytest
import torch

from cam_utils import chosen
from cam_utils.chosen import BUDGETS, MAX_POSITIONS, Choice, Upload, diagonal, explained, faded, game, layers
from cam_utils.data import load_photo
from cam_utils.explorer import Explorer
from cam_utils.layers import map_sizes
from cam_utils.models import DEFAULT_MODEL, spec_of

CHOICE = Choice(load_photo("dog"), DEFAULT_MODEL, "blocks.5", 235)


@pytest.fixture
def app():
    return Explorer("dog", layer="blocks.5")


def shown(app):
    return [app.maps.value, app.error.value, app.fade.value]


def upload(app, name, content):
    now = datetime.datetime.now(datetime.UTC)
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": now}
    app.upload.value = (file,)


def test_nothing_is_computed_twice():
    assert explained(CHOICE, "grad_cam") is explained(CHOICE, "grad_cam")
    assert game(CHOICE) is game(CHOICE) and faded(CHOICE, 0.5) is faded(CHOICE, 0.5)
    image = load_photo("owl").path.read_bytes()
    assert chosen.picture(Upload("a.jpg", image)) is chosen.picture(Upload("a.jpg", bytes(image)))


def test_the_diagonal_ends_in_the_photos_probability(lite0):
    q, values = diagonal(CHOICE)
    assert (q[0], q[-1]) == (0, 1)
    probability = chosen.probabilities(DEFAULT_MODEL, CHOICE.photo)[235].item()
    assert values[-1] == pytest.approx(probability, abs=1e-4) == faded(CHOICE, 1.0)[0]
    ones = torch.full((1, game(CHOICE).n_players), 0.5)
    assert faded(CHOICE, 0.5)[0] == pytest.approx(game(CHOICE).value(ones).item(), abs=1e-5)
    assert faded(CHOICE, 0.5)[1].shape == (7, 7)


def test_layers_are_the_stages_with_maps_that_are_coarse_enough(lite0):
    assert layers(DEFAULT_MODEL) == ("blocks.3", "blocks.4", "blocks.5", "blocks.6", "bn2")
    sizes = map_sizes(lite0, torch.zeros(1, 3, 224, 224))
    assert sizes["blocks.5"] == (192, 7, 7) and spec_of(lite0).layer in layers(DEFAULT_MODEL)
    assert all(sizes[name][1] * sizes[name][2] <= MAX_POSITIONS for name in layers(DEFAULT_MODEL))


@pytest.mark.parametrize("name, layer", [("resnet18", "layer4"), ("vgg16", "features.29")])
def test_layers_of_torchvisions_networks(monkeypatch, name, layer):
    network = chosen.load_model(name, "random")
    monkeypatch.setattr(chosen, "network", lambda _: network)
    found = layers.__wrapped__(name)
    assert layer in found and len(set(found)) == len(found) <= 6


def test_shows_the_same_as_the_functions(app):
    assert app.choice == CHOICE
    assert app.target.label == "German shepherd, 97.1%" and len(app.target.options) == 5
    assert app.maps.value.count("<img alt=") == 3 and app.fade.value.count("<img alt=") == 1
    assert not app.message.value and "Ready" in app.status.value
    assert repr(app) == app._repr_mimebundle_()["text/plain"], "what is committed must not change from run to run"


@pytest.mark.parametrize(
    "part, value, changed",
    [
        ("photo", load_photo("cat"), [True, True, True]),
        ("layer", "bn2", [True, True, True]),
        ("target", 225, [True, True, True]),
        ("budget", BUDGETS[1], [True, True, False]),
        ("signed", True, [True, False, False]),
        ("opacity", 0.2, [True, False, False]),
        ("q", 0.5, [False, False, True]),
    ],
)
def test_a_choice_changes_what_depends_on_it(app, part, value, changed):
    before = shown(app)
    getattr(app, part).value = value
    assert [a != b for a, b in zip(before, shown(app), strict=True)] == changed
    assert not app.message.value


def test_another_network_keeps_the_layer_where_it_has_it(app):
    app.model.value = "tf_efficientnet_lite1"
    assert app.layer.value == "blocks.5" and not app.message.value


def test_a_method_that_cannot_says_so_and_the_others_are_shown(app):
    app.methods["cam"].value = True
    assert "cam: CAM needs a network" in app.message.value and app.maps.value.count("<img alt=") == 3
    for box in app.methods.values():
        box.value = False
    assert "tick at least one" in app.message.value


def test_a_class_is_found_by_name_or_number_or_the_message_helps(app):
    app.search.value = "golden retriever"
    assert app.target.label.startswith("golden retriever") and len(app.target.options) == 6 and not app.search.value
    app.search.value = "235"
    assert app.target.value == 235 and not app.message.value
    before = shown(app)
    app.search.value = "golden retriver"
    assert "Did you mean: golden retriever" in app.message.value and shown(app) == before


def test_an_uploaded_photo_is_explained(app):
    upload(app, "<mine>.jpg", load_photo("toucan").path.read_bytes())
    assert app.photo.label == "uploaded: <mine>.jpg" and "&lt;mine&gt;" in app.maps.value and not app.message.value
    app.photo.value = load_photo("cat")
    upload(app, "<mine>.jpg", load_photo("toucan").path.read_bytes())  # again: chosen, not listed twice
    assert sum(label.startswith("uploaded") for label, _ in app.photo.options) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("notes.txt", b"Not a photo", "notes.txt is no image"),
        ("huge.jpg", bytes(10 * 2**20), "huge.jpg is too large (10.0 MB"),
        ("empty.png", b"", "empty.png is empty"),
    ],
)
def test_a_bad_upload_is_a_message_and_changes_nothing(app, name, content, message):
    before = shown(app)
    upload(app, name, content)
    assert message in app.message.value and "/tmp" not in app.message.value
    assert shown(app) == before and app.photo.value == load_photo("dog")
    app.photo.value = load_photo("cat")
    assert not app.message.value, "a message goes with the next choice"


def test_what_goes_wrong_unexpectedly_is_a_message_too(app, monkeypatch):
    monkeypatch.setattr("cam_utils.explorer.plot_fade", lambda *_: 1 / 0)
    app.q.value = 0.25
    assert "ZeroDivisionError" in app.message.value and "Ready" in app.status.value


@pytest.mark.parametrize(
    "wrong", [{"photo": "dgo"}, {"layer": "blocks.0"}, {"methods": ["gradcam"]}, {"model": "resnet"}]
)
def test_what_does_not_exist_is_an_error(wrong):
    with pytest.raises(ValueError):
        Explorer(**wrong)
