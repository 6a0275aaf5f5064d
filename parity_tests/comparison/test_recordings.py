"""Recordings in files: the same arrays to the bit, streamed or not; checked when they are read; as sides."""

import numpy as np
import pytest
from helpers import FRAMEWORKS, SMALL, identical, random_weights

from mixer_common.config.model import activation_names
from mixer_common.interface import load_framework

IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SMALL.image_size, 3), np.uint8)


# ---- Streaming.


@FRAMEWORKS
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_a_sink_gets_every_activation_as_it_is_computed(framework, precision):
    """In network order, the same bits as without a sink, and nothing is left in memory."""
    program = load_framework(framework)
    device = program.prepare("cpu", precision)
    arguments = (SMALL, random_weights(SMALL), IMAGES, precision, device)
    streamed: dict[str, np.ndarray] = {}
    rest = program.activations(*arguments, sink=lambda name, array: streamed.update({name: array.copy(order="C")}))
    assert rest == {}
    assert list(streamed) == activation_names(SMALL)
    assert identical(streamed, program.activations(*arguments))


@FRAMEWORKS
def test_what_a_sink_raises_is_raised(framework, caplog, capfd):
    program = load_framework(framework)
    device = program.prepare("cpu", "float32")
    taken: list[str] = []

    def full(name, array):
        taken.append(name)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        program.activations(SMALL, random_weights(SMALL), IMAGES, "float32", device, sink=full)
    assert taken == ["stem"]
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
