"""Folders of Orbax, in which Flax's guides store checkpoints: named arrays out."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mixer_common.errors import UserError
from mixer_common.weights.reading import plain_array


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, under their paths ("params/head/kernel"), whatever devices it was saved from.

    bfloat16, which NumPy lacks, is widened to float32. Raises UserError where it is damaged.
    """
    path = path.resolve()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=options))
    except Exception as error:  # Orbax lets those of TensorStore and of the file system through
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is no complete folder of Orbax ({first_line}): it was cut short or changed; use another copy."
        ) from None
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys): plain_array(value)
        for keys, value in leaves
        if isinstance(value, np.ndarray | jax.Array)
    }
