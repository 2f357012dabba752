"""The reference CNN and its recipe in plain PyTorch: what jaxdl is measured and tested against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TorchCNN(nn.Module):
    """The reference CNN as PyTorch users write it: NCHW, logits out."""

    def __init__(
        self,
        classes: int,
        *,
        widths: Sequence[int] = (32, 64, 128),
        hidden: int = 512,
        channels: int = 3,
        image_size: tuple[int, int] = (48, 48),
        dropout: float = 0.5,
    ):
        super().__init__()
        inputs = (channels, *widths)
        self.convs = len(widths)
        for i, width in enumerate(widths, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs[i - 1], width, 3, padding=1))
        pixels = math.prod(side // 2 ** (self.convs - 1) for side in image_size)
        self.fc1 = nn.Linear(pixels * widths[-1], hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits [b, v] of images [b, c, h, w]."""
        for i in range(1, self.convs + 1):
            x = F.relu(self.get_submodule(f"conv{i}")(x))
            if i > 1:
                x = F.max_pool2d(x, 2)
        x = self.dropout(x.flatten(1))
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)


def make_step(
    network: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[Tensor, Tensor], Tensor]:
    """Makes the step that PyTorch's own examples have; it returns the loss, still on the device."""

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def epoch(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the shuffled, augmented batches of an epoch, of a set that lies on the device."""
    order = torch.randperm(len(images), device=images.device)
    for chosen in order.split(batch_size):
        yield augment(images[chosen]), labels[chosen]


def augment(images: Tensor) -> Tensor:
    """Applies the reference recipe to uint8 grey images [b, 1, h, w], the whole batch at once.

    Resize to 48x48 (bilinear, antialiased), rotate by up to 10 degrees (nearest), jitter
    brightness and contrast by .2, repeat to 3 channels, normalise. Batched on tensors this is
    faster than torchvision's transforms, which take one image at a time.
    """
    x = images.float() / 255
    x = F.interpolate(x, (48, 48), mode="bilinear", antialias=True, align_corners=False)
    x = jitter(rotate(x, 10), 0.2)
    return (x.expand(-1, 3, -1, -1) - 0.1307) / 0.3081


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotates each square image by its own angle, nearest, with 0 outside."""
    angle = (torch.rand(len(x), device=x.device) * 2 - 1) * math.radians(degrees)
    zero = torch.zeros_like(angle)
    rows = [
        torch.stack([angle.cos(), -angle.sin(), zero], 1),
        torch.stack([angle.sin(), angle.cos(), zero], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", align_corners=False)


def jitter(x: Tensor, spread: float) -> Tensor:
    """Scales brightness, and contrast about each grey image's mean, in an order drawn for each."""

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low

    brightness, contrast = draw(1 - spread, 1 + spread), draw(1 - spread, 1 + spread)
    contrast_first = draw(0, 1) < 0.5
    for contrast_now in (contrast_first, ~contrast_first):
        base = torch.where(contrast_now, x.mean((1, 2, 3), keepdim=True), 0.0)
        factor = torch.where(contrast_now, contrast, brightness)
        x = (base + factor * (x - base)).clamp(0, 1)
    return x
