"""A port of the model with two mistakes in it, on which docs/comparing.md shows how they are found."""

from torch import Tensor, nn


class MixerLayer(nn.Module):
    def __init__(self, patches: int, width: int, token_hidden: int, channel_hidden: int):
        super().__init__()
        self.ln_tok, self.ln_ch = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tok_in, self.tok_out = nn.Linear(patches, token_hidden), nn.Linear(token_hidden, patches)
        self.ch_in, self.ch_out = nn.Linear(width, channel_hidden), nn.Linear(channel_hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C)
        y = self.ln_tok(x).transpose(1, 2)
        x = x + self.tok_out(nn.functional.gelu(self.tok_in(y))).transpose(1, 2)
        y = self.ln_ch(x)
        return x + self.ch_out(nn.functional.gelu(self.ch_in(y), approximate="tanh"))  # the other GELU


class TheirMixer(nn.Module):
    def __init__(self, width: int = 64, patches: int = 64, depth: int = 2):
        super().__init__()
        self.patchify = nn.Conv2d(3, width, 4, stride=4)
        self.layers = nn.ModuleList(MixerLayer(patches, width, 32, 256) for _ in range(depth))
        self.ln_out = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W)
        x = self.patchify(pixels)
        x = x.flatten(2).reshape(len(x), -1, x.shape[1])  # reshaped, not transposed
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.ln_out(x).mean(1))


def build() -> nn.Module:
    return TheirMixer()
