"""The Mixers of timm and of mlp_mixer_pytorch at the sizes of helpers.SMALL, with weights of their own."""

import torch
from mlp_mixer_pytorch import MLPMixer
from timm.models.mlp_mixer import MlpMixer


def build_timm() -> torch.nn.Module:
    torch.manual_seed(0)
    # Its hidden sizes are products with the width, rounded down.
    return MlpMixer(num_classes=5, img_size=(12, 20), patch_size=4, num_blocks=2, embed_dim=24, mlp_ratio=(0.3, 1.4))


def build_lucidrains() -> torch.nn.Module:
    torch.manual_seed(0)
    return MLPMixer(
        image_size=(12, 20),
        channels=3,
        patch_size=4,
        dim=24,
        depth=2,
        num_classes=5,
        expansion_factor=0.3,
        expansion_factor_token=1.4,
    )
