"""Shared fixtures: a seeded float64 toy CNN small enough to check by hand, and the real network."""

import ctypes
import os
import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from cam_utils import load_model

torch.set_num_threads(1)  # the toys are too small to share, and a busy machine stalls threads that wait for each other


@pytest.fixture(autouse=True)
def same_start():
    """Whatever ran before: the command line, called by a test, sets the threads of its process, and layers draw their weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def toy_cnn(head: str = "gap", seed: int = 0, channels: int = 4, classes: int = 3) -> nn.Sequential:
    """features: (N,3,H,W) -> (N,channels,H/2,W/2); head "gap" for any size, "fc" for 12×12 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        if head == "gap":
            classifier = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels, classes)
            )
        else:
            classifier = nn.Sequential(
                nn.Flatten(),
                nn.Linear(channels * 36, 8),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Linear(8, classes),
            )
        model = nn.Sequential()
        model.add_module("features", features)
        model.add_module("classifier", classifier)
    return model.double().eval()


@pytest.fixture(params=["gap", "fc"])
def toy(request):
    return toy_cnn(request.param)


@pytest.fixture
def x():
    return torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def lite0():
    return load_model("tf_efficientnet_lite0")


def state_of(model: nn.Module) -> list:
    """All that a method must leave alone: modes, requires_grad, gradients, hooks, buffers and parameters."""
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
    ]
    parameters = [(p.requires_grad, gradient_of(p)) for p in model.parameters()]
    return [modules, parameters, [value.clone() for value in model.state_dict().values()]]


def gradient_of(parameter: nn.Parameter) -> tuple[int, int] | None:
    """The version and the place of a parameter's gradient: who clears, replaces or adds to it changes one of them."""
    return None if parameter.grad is None else (parameter.grad._version, parameter.grad.data_ptr())


def same_state(a: list, b: list) -> bool:
    return a[:2] == b[:2] and all(torch.equal(v, w) for v, w in zip(a[2], b[2], strict=True))


@contextmanager
def no_superuser():
    """Let permissions hold for this process as for anybody."""
    if os.geteuid():
        yield
        return
    if sys.platform != "linux":
        pytest.skip("the superuser may write everywhere here")
    system, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)  # of this process
    before, now = ((ctypes.c_uint32 * 6)() for _ in range(2))
    assert system.capget(header, before) == system.capget(header, now) == 0
    now[0] &= ~0b110  # effective: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH
    assert system.capset(header, now) == 0
    try:
        yield
    finally:
        assert system.capset(header, before) == 0
