"""Ports of the Mixer, written anew with their own names: they load what is exported; their weights work here."""

import json
from dataclasses import replace

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
from helpers import SMALL, identical, random_weights
from torch import Tensor, nn
from weights.authors_flax import MlpMixer, first_parameters

import mixer_jax
import mixer_jax.model
import mixer_torch.model
from mixer_common.comparison.differences import relative_error
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS
from mixer_common.training.metrics import confusion_matrix
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import load_weights, save_weights
from mixer_common.weights.recognition import recognise_weights


def mlp(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.GELU(), second)


class TutorialBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        channels = config.hidden_dim
        self.layer_norm1 = nn.LayerNorm(channels)
        self.token_mixing = mlp(nn.Linear(channels, config.tokens_mlp_dim), nn.Linear(config.tokens_mlp_dim, channels))
        self.layer_norm2 = nn.LayerNorm(channels)
        self.channel_mixing = mlp(
            nn.Linear(channels, config.channels_mlp_dim), nn.Linear(config.channels_mlp_dim, channels)
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C)
        x = x + self.token_mixing(self.layer_norm1(x.transpose(1, 2)).transpose(1, 2))
        return x + self.channel_mixing(self.layer_norm2(x))


class TutorialMixer(nn.Module):
    """The class of the tutorial "MLP-Mixer in PyTorch"; it runs where there are as many patches as channels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.to_patch_embedding = nn.Conv2d(3, config.hidden_dim, config.patch_size, config.patch_size)
        self.mixer_blocks = nn.ModuleList(TutorialBlock(config) for _ in range(config.num_blocks))
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.mlp_head = nn.Sequential(nn.Linear(config.hidden_dim, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W)
        x = self.to_patch_embedding(images).flatten(2).transpose(1, 2)
        for block in self.mixer_blocks:
            x = block(x)
        return self.mlp_head(self.layer_norm(x).mean(1))


class OmihubMlp(nn.Module):
    def __init__(self, channels: int, fc1: nn.Module, fc2: nn.Module):
        super().__init__()
        self.ln, self.fc1, self.fc2 = nn.LayerNorm(channels), fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(self.ln(x))))


class OmihubLayer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        S, C = config.num_patches, config.hidden_dim
        tokens, channels = config.tokens_mlp_dim, config.channels_mlp_dim
        self.mlp1 = OmihubMlp(C, nn.Conv1d(S, tokens, 1), nn.Conv1d(tokens, S, 1))
        self.mlp2 = OmihubMlp(C, nn.Linear(C, channels), nn.Linear(channels, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp2(self.mlp1(x))


class OmihubMixer(nn.Module):
    """The model of omihub777/MLP-Mixer-CIFAR."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.patch_emb = nn.Sequential(nn.Conv2d(3, config.hidden_dim, config.patch_size, config.patch_size))
        self.mixer_layers = nn.Sequential(*(OmihubLayer(config) for _ in range(config.num_blocks)))
        self.ln = nn.LayerNorm(config.hidden_dim)
        self.clf = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.mixer_layers(self.patch_emb(images).flatten(2).transpose(1, 2))
        return self.clf(self.ln(x).mean(1))


class JeonsworldMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(nn.functional.gelu(self.fc0(x)))


class JeonsworldBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.token_mlp_block = JeonsworldMlp(config.num_patches, config.tokens_mlp_dim)
        self.channel_mlp_block = JeonsworldMlp(config.hidden_dim, config.channels_mlp_dim)
        self.pre_norm = nn.LayerNorm(config.hidden_dim, eps=1e-6)
        self.post_norm = nn.LayerNorm(config.hidden_dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp_block(self.pre_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp_block(self.post_norm(x))


class JeonsworldMixer(nn.Module):
    """The model of jeonsworld/MLP-Mixer-Pytorch, whose head is registered before its blocks."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.stem = nn.Conv2d(3, config.hidden_dim, config.patch_size, config.patch_size)
        self.head = nn.Linear(config.hidden_dim, config.num_classes)
        self.pre_head_ln = nn.LayerNorm(config.hidden_dim, eps=1e-6)
        self.layer = nn.ModuleList(JeonsworldBlock(config) for _ in range(config.num_blocks))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.layer:
            x = block(x)
        return self.head(self.pre_head_ln(x).mean(1))


class MmFfn(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0)), nn.Linear(hidden, width), nn.Dropout(0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MmBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim)
        self.token_mix = MmFfn(config.num_patches, config.tokens_mlp_dim)
        self.ln2 = nn.LayerNorm(config.hidden_dim)
        self.channel_mix = MmFfn(config.hidden_dim, config.channels_mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.ln1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.ln2(x))


class MmBackbone(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(3, config.hidden_dim, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(MmBlock(config) for _ in range(config.num_blocks))
        self.ln1 = nn.LayerNorm(config.hidden_dim)


class MmClassifier(nn.Module):
    """mmpretrain's ImageClassifier of MlpMixer and LinearClsHead."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.backbone = MmBackbone(config)
        self.head = nn.Module()
        self.head.fc = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone.patch_embed.projection(images).flatten(2).transpose(1, 2)
        for block in self.backbone.layers:
            x = block(x)
        return self.head.fc(self.backbone.ln1(x).mean(1))


PORTS = {
    "tutorial": (TutorialMixer, MODELS["tutorial"]),
    "omihub": (OmihubMixer, SMALL),
    "jeonsworld": (JeonsworldMixer, replace(SMALL, layer_norm_epsilon=1e-6)),
    "mmpretrain": (MmClassifier, SMALL),
}


def logits(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Of a port, which takes images channel first; pixels are (B, H, W, 3)."""
    with torch.no_grad():
        return model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("format", PORTS)
def test_a_port_loads_what_is_exported_and_computes_the_same(tmp_path, format, precision):
    port, config = PORTS[format]
    arrays = {name: array.astype(precision) for name, array in random_weights(config).items()}
    model = port(config).to(getattr(torch, precision)).eval()
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *config.image_size, 3)).astype(precision)
    in_torch = mixer_torch.model.build_model(config, arrays)(torch.from_numpy(pixels)).detach().numpy()
    in_jax = np.asarray(mixer_jax.model.build_model(config, arrays)(pixels))
    for name in ("out.pth", "out.safetensors"):
        save_weights(tmp_path / name, ModelWeights(config, arrays, "canonical"), format)
    model.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    theirs = logits(model, pixels)
    bound = 1e-5 if precision == "float32" else 1e-13
    assert relative_error(in_torch, theirs) < bound
    assert relative_error(in_jax, theirs) < bound
    back = load_weights(tmp_path / "out.safetensors", image_size=config.image_size)
    assert (back.format, back.config) == (format, config)
    assert identical(back.arrays, arrays)


@pytest.mark.parametrize("format", PORTS)
def test_what_a_port_wrote_is_read(tmp_path, format):
    port, config = PORTS[format]
    torch.manual_seed(0)
    model = port(config).eval()
    torch.save(model.state_dict(), tmp_path / "port.pth")
    weights = load_weights(tmp_path / "port.pth", image_size=config.image_size)
    assert (weights.format, weights.config) == (format, config)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *config.image_size, 3)).astype(np.float32)
    ours = mixer_torch.model.build_model(config, weights.arrays)(torch.from_numpy(pixels)).detach().numpy()
    assert relative_error(ours, logits(model, pixels)) < 1e-5
    save_weights(tmp_path / "again.pth", weights, format)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert again.keys() == model.state_dict().keys()


def test_the_tutorial_s_state_dict_trains_on_evaluates_and_converts(script, tmp_path):
    torch.manual_seed(0)
    model = TutorialMixer(MODELS["tutorial"])
    torch.save(model.state_dict(), tmp_path / "port.pth")
    for framework in ("jax", "torch"):
        run = tmp_path / framework
        code, stdout, stderr = script(
            f"train_{framework}",
            "--init-from",
            tmp_path / "port.pth",
            "--dataset",
            "digits",
            "--steps",
            2,
            "--out",
            run,
        )
        assert code == 0, stderr
        assert f"tutorial weights in {tmp_path / 'port.pth'}" in stdout
        assert load_weights(run).config.block == "tutorial"
        assert script("evaluate", run)[0] == 0
        code, stdout, _ = script("convert", run, tmp_path / f"{framework}.pth", "--to", "tutorial")
        assert code == 0
        model.load_state_dict(torch.load(tmp_path / f"{framework}.pth", weights_only=True), strict=True)
    # Two steps of either framework part by rounding alone.
    a, b = (load_weights(tmp_path / framework).arrays for framework in ("jax", "torch"))
    assert max(np.abs(a[name] - b[name]).max() for name in a) < 1e-4


def test_the_tutorial_s_names_tell_its_block():
    _, config = PORTS["tutorial"]
    state = {name: value.numpy() for name, value in TutorialMixer(config).state_dict().items()}
    weights = recognise_weights(state, "here")
    assert weights.config == config
    assert "block" not in weights.assumed


@pytest.mark.parametrize("format", ["npz", "msgpack"])
def test_the_authors_model_loads_what_is_exported_and_computes_the_same(tmp_path, format, precision):
    config = replace(SMALL, gelu="tanh", layer_norm_epsilon=1e-6, init="flax")
    arrays = {name: array.astype(precision) for name, array in random_weights(config).items()}
    path = tmp_path / f"out.{format}"
    save_weights(path, ModelWeights(config, arrays, "canonical"), format)
    parameters = first_parameters(config)
    if format == "msgpack":
        parameters = flax.serialization.from_bytes(parameters, path.read_bytes())
    else:
        parameters = flax.traverse_util.unflatten_dict(dict(np.load(path)), sep="/")
    shapes = [jax.tree.map(np.shape, each) for each in (parameters, first_parameters(config))]
    assert shapes[0] == shapes[1]
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *config.image_size, 3)).astype(precision)
    theirs = np.asarray(MlpMixer(config).apply({"params": parameters}, pixels))
    in_torch = mixer_torch.model.build_model(config, arrays)(torch.from_numpy(pixels)).detach().numpy()
    in_jax = np.asarray(mixer_jax.model.build_model(config, arrays)(pixels))
    bound = 1e-5 if precision == "float32" else 1e-13
    assert relative_error(in_torch, theirs) < bound
    assert relative_error(in_jax, theirs) < bound
    (tmp_path / "theirs").write_bytes(flax.serialization.to_bytes(parameters))
    assert identical(load_weights(tmp_path / "theirs").arrays, arrays)


@pytest.mark.slow
def test_the_trained_tutorial_class_predicts_the_same_10_000_classes_in_jax(script, cifar10, tmp_path):
    """Trained in its own PyTorch, saved by torch.save, evaluated here: every prediction is the same."""
    torch.manual_seed(0)
    model = TutorialMixer(MODELS["tutorial"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    order = np.random.default_rng(0).permutation(len(cifar10.train_images))
    for indices in order[: 400 * 64].reshape(400, 64):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(tutorial_pixels(cifar10.train_images[indices])),
            torch.from_numpy(cifar10.train_labels[indices]).long(),
        )
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    with torch.no_grad():
        batches = [model(tutorial_pixels(images)) for images in np.split(cifar10.test_images, 20)]
    theirs = torch.cat(batches).numpy()
    accuracy = float((theirs.argmax(1) == cifar10.test_labels).mean())
    assert len(theirs) == 10_000
    assert accuracy > 0.3  # it has learnt: a guess is right in a tenth
    for framework in ("jax", "torch"):
        report = tmp_path / f"{framework}.json"
        options = ("--dataset", "cifar10", "--framework", framework, "--json", report)
        code, stdout, stderr = script("evaluate", tmp_path / "trained.pth", *options)
        assert code == 0, stderr
        assert "Weights  " in stdout
        figures = json.loads(report.read_text())
        assert figures["test_accuracy"] == accuracy
        assert figures["confusion_matrix"] == confusion_matrix(theirs, cifar10.test_labels).tolist()
    ours = mixer_jax.predict(mixer_jax.load(tmp_path / "trained.pth"), cifar10.test_images)
    assert (ours.argmax(1) == theirs.argmax(1)).all()
    probabilities = torch.from_numpy(theirs).softmax(1).numpy()
    assert np.abs(ours - probabilities).max() < 1e-5


def tutorial_pixels(images: np.ndarray) -> Tensor:
    """The tutorial's ToTensor, then Normalize with mean and deviation 0.5."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
