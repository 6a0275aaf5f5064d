"""Other projects' Mixers in PyTorch, with this project's weights, so that they compute the same function."""

from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from mixer_bench.worker import Unavailable
from mixer_common.config.model import ModelConfig
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.formats import to_format

PACKAGES = {"timm": "timm", "lucidrains": "mlp-mixer-pytorch"}


class OtherModel(nn.Module):
    """A model that takes pixels (B, 3, H, W), called as mixer_torch.model.Mixer is: with pixels (B, H, W, 3).

    What Mixer's `forward` takes besides is ignored: paths that are dropped, and a recorder.
    """

    def __init__(self, config: ModelConfig, model: nn.Module):
        super().__init__()
        self.config, self.model = config, model

    def forward(self, pixels: Tensor, *_: object) -> Tensor:
        return self.model(pixels.permute(0, 3, 1, 2))


def build_other_model(
    format: str, config: ModelConfig, weights: dict[str, np.ndarray], device: torch.device, dtype: torch.dtype
) -> OtherModel:
    """The Mixer of a package, with the sizes, GELU and LayerNorm epsilon of the config.

    format: "timm" or "lucidrains"; weights: canonical. Raises Unavailable where the package is not installed.
    """
    # Both packages take a ratio of hidden sizes and round its product down.
    tokens_ratio, channels_ratio = (
        (hidden + 0.5) / config.hidden_dim for hidden in (config.tokens_mlp_dim, config.channels_mlp_dim)
    )
    try:
        with torch.device("meta"):
            if format == "timm":
                model = import_module("timm.models.mlp_mixer").MlpMixer(
                    num_classes=config.num_classes,
                    img_size=config.image_size,
                    patch_size=config.patch_size,
                    num_blocks=config.num_blocks,
                    embed_dim=config.hidden_dim,
                    mlp_ratio=(tokens_ratio, channels_ratio),
                )
            else:
                model = import_module("mlp_mixer_pytorch").MLPMixer(
                    image_size=config.image_size,
                    channels=3,
                    patch_size=config.patch_size,
                    dim=config.hidden_dim,
                    depth=config.num_blocks,
                    num_classes=config.num_classes,
                    expansion_factor=tokens_ratio,
                    expansion_factor_token=channels_ratio,
                )
    except ModuleNotFoundError:
        raise Unavailable(f"the package {PACKAGES[format]} is not installed") from None
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh" if config.gelu == "tanh" else "none"
        elif isinstance(module, nn.LayerNorm):
            module.eps = config.layer_norm_epsilon
    arrays = to_format(ModelWeights(config, weights, "canonical"), format)
    model.load_state_dict(
        {name: torch.tensor(np.ascontiguousarray(array), device=device, dtype=dtype) for name, array in arrays.items()},
        assign=True,
    )
    return OtherModel(config, model).requires_grad_()
