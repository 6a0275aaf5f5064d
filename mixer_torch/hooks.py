"""What a forward pass does beside computing logits: it records or replaces activations, and drops branches.

Twin of mixer_jax/hooks.py. Shapes: B images, S patches, C channels.
"""

from collections.abc import Callable

from torch import Tensor

Recorder = Callable[[str, Tensor], Tensor]


class Hooks:
    """Hands activations to a recorder and adds branches to the residual stream; by default records and drops nothing.

    The model, each block and each branch have hooks of their own, which know where in the model they are.
    """

    def __init__(self, recorder: Recorder | None = None, drop_path: Tensor | None = None, prefix: str = ""):
        """recorder: called with the name and value of every activation; the model goes on with what it returns.

        prefix: what the names begin with.

        drop_path: what every branch is multiplied with: of the model (num_blocks, 2, B), of a block (2, B), of a
        branch (B,).
        """
        self.recorder, self.drop_path, self.prefix = recorder, drop_path, prefix

    def block(self, i: int) -> "Hooks":
        """The hooks of block `i`, from those of the model."""
        return Hooks(self.recorder, self._drop_path(i), f"blocks.{i}.")

    def branches(self) -> tuple["Hooks", "Hooks"]:
        """The hooks of token mixing and of channel mixing, from those of their block."""
        return (
            Hooks(self.recorder, self._drop_path(0), f"{self.prefix}token_"),
            Hooks(self.recorder, self._drop_path(1), f"{self.prefix}channel_"),
        )

    def record(self, name: str, x: Tensor, over_tokens: bool = False) -> Tensor:
        """What the recorder returns for x, or x without one; (B, S, C), or over tokens (B, C, S)."""
        if self.recorder is None:
            return x
        if over_tokens:
            return self.recorder(self.prefix + name, x.transpose(1, 2)).transpose(1, 2)
        return self.recorder(self.prefix + name, x)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """The residual connection: x + branch, or x alone where the branch is dropped; all (B, S, C)."""
        if self.drop_path is not None:
            branch = branch * self.drop_path[:, None, None]
        return self.record("mixing", x + branch)

    def _drop_path(self, i: int) -> Tensor | None:
        return None if self.drop_path is None else self.drop_path[i]
