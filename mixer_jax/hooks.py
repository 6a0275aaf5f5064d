"""What a forward pass does beside computing logits: it records or replaces activations, and drops branches.

Twin of mixer_torch/hooks.py. Shapes: B images, S patches, C channels.
"""

from collections.abc import Callable

from jax import Array

from mixer_jax.xla import materialize_gradient

Recorder = Callable[[str, Array], Array]


class Hooks:
    """Hands activations to a recorder and adds branches to the residual stream; by default records and drops nothing.

    The model, each block and each branch have hooks of their own, which know where in the model they are.
    """

    def __init__(
        self,
        recorder: Recorder | None = None,
        drop_path: Array | None = None,
        prefix: str = "",
        one: Array | None = None,
    ):
        """recorder: called with the name and value of every activation; the model goes on with what it returns.

        prefix: what the names begin with.

        drop_path: what every branch is multiplied with: of the model (num_blocks, 2, B), of a block (2, B), of a
        branch (B,). one: a branch's, see mixer_jax.xla.materialize_gradient.
        """
        self.recorder, self.drop_path, self.prefix, self.one = recorder, drop_path, prefix, one

    def block(self, i: int) -> "Hooks":
        """The hooks of block `i`, from those of the model."""
        return Hooks(self.recorder, self._drop_path(i), f"blocks.{i}.")

    def branches(self, one: Array) -> tuple["Hooks", "Hooks"]:
        """The hooks of token mixing and of channel mixing, from those of their block."""
        return (
            Hooks(self.recorder, self._drop_path(0), f"{self.prefix}token_", one),
            Hooks(self.recorder, self._drop_path(1), f"{self.prefix}channel_", one),
        )

    def record(self, name: str, x: Array, over_tokens: bool = False) -> Array:
        """What the recorder returns for x, or x without one; (B, S, C), or over tokens (B, C, S)."""
        if self.recorder is None:
            return x
        if over_tokens:
            return self.recorder(self.prefix + name, x.swapaxes(1, 2)).swapaxes(1, 2)
        return self.recorder(self.prefix + name, x)

    def add(self, x: Array, branch: Array) -> Array:
        """The residual connection: x + branch, or x alone where the branch is dropped; all (B, S, C)."""
        if self.drop_path is not None:
            branch = branch * self.drop_path[:, None, None]
        return self.record("mixing", materialize_gradient(x + branch, self.one))

    def _drop_path(self, i: int) -> Array | None:
        return None if self.drop_path is None else self.drop_path[i]
