"""Networks that are trained on the spot, in seconds, on data whose right answer is known (`data.make_shapes`)."""

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from .models import ModelSpec
from .shapes import make_shapes


def shapes_net(head: str = "gap", *, class_names: tuple[str, ...], seed: int = 0) -> nn.Sequential:
    """A small CNN for 64×64 images in [0,1], with a VGG-like fully connected head ("fc") or average pooling ("gap").

    Modules: features (N,3,64,64) -> (N,64,8,8), then classifier -> (N,K). The last feature maps are "features".
    """
    if head not in ("fc", "gap"):
        raise ValueError(f'head must be "fc" or "gap", not {head!r}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, channels = [], 3
        for width in (16, 32, 64):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.MaxPool2d(2),
                nn.ReLU(),  # after pooling it does the same to a quarter of the numbers
            ]
            channels = width
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        model = nn.Sequential()
        model.add_module("features", nn.Sequential(*layers))
        model.add_module("classifier", classifier(head, channels, len(class_names)))
    model.spec = ModelSpec(
        f"shapes_net_{head}",
        "features",
        64,
        64,
        InterpolationMode.BILINEAR,
        (0.0,) * 3,
        (1.0,) * 3,
        tuple(class_names),
        "shapes",
    )
    return model


def classifier(head: str, channels: int, classes: int) -> nn.Sequential:
    """The part after the feature maps (N,channels,8,8): "fc" as in VGG, or "gap": global average pooling and one linear layer."""
    if head == "gap":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    hidden = nn.Linear(channels * 64, 256)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, classes))


def shapes_classifier(
    head: str,
    *,
    images: int = 2000,
    epochs: int,
    watermark: float | None = None,
    seed: int = 0,
    memory_format: torch.memory_format = torch.contiguous_format,
    progress: bool | None = None,
) -> nn.Sequential:
    """A `shapes_net` trained on `images` shapes of `seed`, its parameters frozen. watermark: see `shapes.make_shapes`."""
    data = make_shapes(images, seed=seed, watermark=watermark)
    model = shapes_net(head, class_names=data.class_names, seed=seed).to(memory_format=memory_format)
    inputs = torch.from_numpy(data.images).to(memory_format=memory_format)
    draws = torch.Generator().manual_seed(seed)
    options = {"epochs": epochs, "batch_size": 32, "learning_rate": 2e-3, "generator": draws, "progress": progress}
    fit(model, inputs, torch.from_numpy(data.labels), **options)
    return model.requires_grad_(False)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    generator: torch.Generator,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    progress: bool | None = None,
) -> list[float]:
    """Train by AdamW with a one-cycle schedule on the cross-entropy; returns the mean loss (nats) of each epoch.

    images (N,C,H,W), labels (N,). Dropout draws from `generator`'s seed as well. The model is left in evaluation mode.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    steps = -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs=epochs, steps_per_epoch=steps)
    losses = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        for _ in tqdm(range(epochs), desc="training", disable=None if progress is None else not progress):
            total = 0.0
            for batch in torch.randperm(len(images), generator=generator).split(batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
            losses.append(total / len(images))
    model.eval()
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 256) -> float:
    """Share of images (N,C,H,W) whose top class is the label, in [0,1]."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(batch_size)])
    return (predicted == labels).double().mean().item()
