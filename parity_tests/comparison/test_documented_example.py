"""What docs/comparing.md shows of a port with two mistakes."""

from dataclasses import replace
from pathlib import Path

from helpers import random_weights

from mixer_common.config.presets import MODELS
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import save_weights

PORT = Path(__file__).parents[2] / "examples" / "their_port.py"


def test_both_mistakes_are_named(script, tmp_path):
    config = replace(MODELS["tiny"], num_classes=10)
    save_weights(tmp_path / "tiny", ModelWeights(config, random_weights(config), "canonical"), "canonical")
    code, out, _ = script(
        "compare", tmp_path / "tiny", f"torch:{PORT}:build", "--weights", tmp_path / "tiny", "--dataset", "digits",
        "--images", 4, "--isolate",
    )  # fmt: skip
    assert code == 1
    assert "They part at stem: " in out
    assert "with patches and channels exchanged on the way out: (N, C, S) reshaped to (N, S, C)" in out
    assert "From A's input, 3 layers give other values in B:" in out
    for i in (0, 1):
        assert f"  blocks.{i}.channel_mixing.gelu (" in out
    assert out.count("B's values are A's with the tanh form of GELU instead of the exact form.") == 2
