from datetime import UTC, datetime

import pytest
import torch

from cam_utils import chosen, paths
from cam_utils.data import load_photo
from cam_utils.explorer import Explorer


@pytest.fixture(scope="module")
def app():
    return Explorer("dog", layer="blocks.5", methods=["owen_cam", "grad_cam"])


def shown(app):
    return app.maps.value, app.error.value, app.fade.value


def test_starts_with_a_picture_of_everything_and_no_message(app):
    assert app.maps.value.count("<img alt=") == 3 and "Map of owen_cam for German shepherd" in app.maps.value
    assert app.error.value.count("<img") == app.fade.value.count("<img") == 1
    assert not app.message.value and "Ready" in app.status.value


@pytest.mark.parametrize(
    "part, value, changes",
    [
        ("opacity", 0.3, (True, False, False)),
        ("signed", True, (True, False, False)),
        ("budget", 128, (True, True, False)),
        ("q", 0.4, (False, False, True)),
        ("target", 1, (True, True, True)),  # by its place in the list
        ("photo", "cat", (True, True, True)),
        ("layer", "bn2", (True, True, True)),
    ],
)
def test_what_is_moved_changes_what_depends_on_it(app, part, value, changes):
    widget, before = getattr(app, part), shown(app)
    if part == "target":
        value = widget.options[value][1]
    widget.value = load_photo(value) if part == "photo" else value
    assert tuple(a != b for a, b in zip(before, shown(app), strict=True)) == changes
    assert not app.message.value


def test_a_class_by_name_and_one_that_does_not_exist(app):
    app.search.value = "tabby"
    assert app.target.label.startswith("tabby,") and app.search.value == "" and not app.message.value
    app.search.value = "tabbi"
    assert "Did you mean: tabby" in app.message.value


def test_an_upload_and_what_is_none(app):
    content = (paths.PHOTOS / "toucan.jpg").read_bytes()
    file = {"name": "bird.jpg", "type": "image/jpeg", "size": len(content), "content": memoryview(content)}
    file["last_modified"] = datetime.now(UTC)
    app.upload.value = (file,)
    assert app.photo.label == "uploaded: bird.jpg" and not app.message.value
    before = shown(app)
    app.upload.value = (file | {"name": "<b>.txt", "content": memoryview(b"Not a photo")},)
    assert "&lt;b&gt;.txt is no image" in app.message.value and shown(app) == before


def test_a_method_that_cannot_leaves_the_others_their_maps(app):
    app.layer.value = "blocks.5"
    app.methods["cam"].value = True
    assert "cam: " in app.message.value and "Map of owen_cam" in app.maps.value
    app.methods["cam"].value = False
    assert not app.message.value


def test_no_method_is_said_not_shown(app):
    for box in app.methods.values():
        box.value = False
    assert "tick at least one" in app.message.value
    app.methods["owen_cam"].value = True


def test_what_does_not_exist_is_refused():
    for wrong in ({"photo": "unicorn"}, {"layer": "blocks.99"}, {"methods": ["magic"]}):
        with pytest.raises(ValueError):
            Explorer(**wrong)


def test_the_diagonal_ends_at_nobody_and_everybody():
    choice = chosen.Choice(load_photo("dog"), "tf_efficientnet_lite0", "blocks.5", 235)
    q, values = chosen.diagonal(choice)
    ends = chosen.game(choice).value(torch.tensor([[0.0], [1.0]]).expand(2, 49))
    assert (q[0], q[-1]) == (0, 1) and values[[0, -1]] == pytest.approx(ends.numpy(), abs=1e-5)
    assert chosen.faded(choice, 1.0)[0] == pytest.approx(values[-1], abs=1e-5)


def test_layers_are_those_that_every_method_can_afford():
    assert chosen.layers("tf_efficientnet_lite0") == ("blocks.3", "blocks.4", "blocks.5", "blocks.6", "bn2")


def test_an_upload_that_is_too_large():
    with pytest.raises(ValueError, match="huge.jpg is too large .10 MB, the limit is 9 MB"):
        chosen.picture(chosen.Upload("huge.jpg", bytes(10**7)))
