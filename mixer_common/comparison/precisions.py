"""Which layers of a model bear bfloat16: each is computed in it alone, and its effect on the logits is measured."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.comparison.differences import relative_error
from mixer_common.comparison.recording import Recording, Subject

# What bfloat16 does to the logits where the head alone computes in it: it rounds its input, its weights and its result,
# each by at most UNIT_ROUNDOFF, and the errors of the first two, of many products, partly cancel.
LIMIT = 2 * UNIT_ROUNDOFF["bfloat16"]


@dataclass(frozen=True)
class LayerEffect:
    """What becomes of the logits where a layer is computed in bfloat16."""

    name: str  # of the layer; "all layers": the whole model in bfloat16
    own_error: float  # of the layer's activation; see relative_error
    logits_error: float  # of the logits
    other_classes: int  # images whose highest class becomes another

    @property
    def bears(self) -> bool:
        """Whether the logits move by no more than LIMIT, as if the head alone were in bfloat16, and choose the same."""
        return self.logits_error <= LIMIT and not self.other_classes


def layer_effects(recording: Recording, subject: Subject) -> Iterator[LayerEffect]:
    """The effect of each layer in network order, then that of all of them.

    recording: of the subject, in the precision in which all other layers compute. A layer in bfloat16 gets the
    recording's activations and rounds them, its weights and its result, as the whole model does in bfloat16; the layers
    after it go on with its result, in the recording's precision. One pass for each layer. Raises UserError where the
    subject cannot compute, as a recording.
    """
    inputs, precision = recording.inputs, recording.origin.precision
    alone = subject.record(inputs, "bfloat16", replacements=recording.activations).activations
    for name, activation in alone.items():
        if name == "head":
            logits = activation
        else:
            logits = subject.record(inputs, precision, replacements={name: activation}).activations["head"]
        yield _effect(name, activation, logits, recording)
    whole = subject.record(inputs, "bfloat16").activations["head"]
    yield _effect("all layers", whole, whole, recording)


def _effect(name: str, activation: np.ndarray, logits: np.ndarray, recording: Recording) -> LayerEffect:
    right = recording.activations["head"]
    return LayerEffect(
        name,
        relative_error(activation, recording.activations.get(name, right)),
        relative_error(logits, right),
        int((logits.argmax(axis=1) != right.argmax(axis=1)).sum()),
    )
