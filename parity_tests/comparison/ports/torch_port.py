"""A port in PyTorch with odd names and layouts: a linear stem over flattened patches, Conv1d of kernel 1 over tokens.

`build()` returns it at the sizes of helpers.SMALL, with weights of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Spatial(nn.Module):
    """Mixes the patches; the residual connection is inside."""

    def __init__(self, patches: int, channels: int, hidden: int):
        super().__init__()
        self.ln_a = nn.LayerNorm(channels)
        self.up = nn.Conv1d(patches, hidden, 1)
        self.down = nn.Conv1d(hidden, patches, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C)
        return x + self.down(F.gelu(self.up(self.ln_a(x))))


class Features(nn.Module):
    """Mixes the channels; the residual connection is outside."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.ln_b = nn.LayerNorm(channels)
        self.net = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.ln_b(x))


class Stage(nn.Module):
    def __init__(self, patches: int, channels: int, tokens_hidden: int, channels_hidden: int):
        super().__init__()
        self.spatial = Spatial(patches, channels, tokens_hidden)
        self.features = Features(channels, channels_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        return x + self.features(x)


class Net(nn.Module):
    """Takes pixels (B, 3, H, W)."""

    def __init__(
        self,
        patch: int,
        patches: int,
        channels: int,
        depth: int,
        tokens_hidden: int,
        channels_hidden: int,
        classes: int,
    ):
        super().__init__()
        self.patch = patch
        self.to_tokens = nn.Linear(3 * patch * patch, channels)
        self.stages = nn.ModuleList(Stage(patches, channels, tokens_hidden, channels_hidden) for _ in range(depth))
        self.ln_out = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        B, P = len(images), self.patch
        x = images.unfold(2, P, P).unfold(3, P, P)  # (B, 3, h, w, P, P)
        x = x.permute(0, 2, 3, 4, 5, 1).reshape(B, -1, P * P * 3)
        x = self.to_tokens(x)
        for stage in self.stages:
            x = stage(x)
        return self.classifier(self.ln_out(x).mean(1))


def build() -> Net:
    torch.manual_seed(0)
    return Net(patch=4, patches=15, channels=24, depth=2, tokens_hidden=7, channels_hidden=33, classes=5)
