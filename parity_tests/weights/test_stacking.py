"""Flax's other ways to store a model: copies for devices, blocks in one array, folders of steps, Orbax."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import checkpoints
from helpers import SMALL, identical, model_weights, random_weights, tree

import mixer_jax
from mixer_common.errors import UserError
from mixer_common.weights.canonical import to_flax
from mixer_common.weights.files import load_weights
from mixer_common.weights.formats import FORMATS, to_format
from mixer_common.weights.like import arrays_like
from mixer_common.weights.recognition import recognise_weights
from mixer_common.weights.stacking import unstack


def flax_tree(seed: int = 0) -> dict:
    return tree(to_format(model_weights(SMALL, seed), "npz"))


def same(found, seed: int = 0) -> bool:
    return identical(found.arrays, model_weights(SMALL, seed).arrays)


def stacked(trees: dict, number: int = 2) -> dict:
    """The tree with one array for all blocks, as nn.scan has it."""
    blocks = [trees[f"MixerBlock_{i}"] for i in range(number)]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)


def write(path, values) -> None:
    path.write_bytes(flax.serialization.msgpack_serialize(values))


@pytest.mark.parametrize("devices", [1, 4])
def test_copies_for_devices(tmp_path, devices):
    state = {"params": flax_tree(), "step": np.int32(7), "opt_state": {"0": {"mu": flax_tree(1)}}}
    write(tmp_path / "a.msgpack", jax.tree.map(lambda array: np.stack([array] * devices), state))
    found = load_weights(tmp_path / "a.msgpack")
    assert same(found)
    assert found.notes == (f"the first of {devices} equal copies, one for each device",)
    # Arrays that differ are no copies of one model.
    different = {"params": jax.tree.map(lambda *arrays: np.stack(arrays), flax_tree(), flax_tree(1))}
    write(tmp_path / "b.msgpack", different)
    with pytest.raises(UserError, match="does not fit a Mixer"):
        load_weights(tmp_path / "b.msgpack")


@pytest.mark.parametrize(
    "name", ["MixerBlock_0", "ScanMixerBlock_0", "blocks", "layers_0", "ScanCheckpointMixerBlock_0"]
)
@pytest.mark.parametrize("around", ["", "params"])
def test_blocks_in_one_array(tmp_path, name, around):
    flat = flax_tree()
    values = {key: value for key, value in flat.items() if not key.startswith("MixerBlock")} | {name: stacked(flat)}
    write(tmp_path / "a.msgpack", {around: values} if around else values)
    found = load_weights(tmp_path / "a.msgpack")
    assert same(found)
    assert found.config.num_blocks == 2
    assert found.format == ("msgpack" if "MixerBlock" in name else "structure")
    path = f"{around}/{name}" if around else name
    assert found.notes[0] == f"the 2 blocks that {path} holds in one"
    with pytest.raises(UserError, match=r"holds the 2 blocks .* in one, which is read and not written"):
        arrays_like(model_weights(SMALL), tmp_path / "a.msgpack", None, lambda *report: None)


def test_copies_of_blocks_in_one_array():
    flat = flax_tree()
    values = {key: value for key, value in flat.items() if not key.startswith("MixerBlock")}
    values["MixerBlock_0"] = stacked(flat)
    found = recognise_weights(jax.tree.map(lambda array: np.stack([array] * 2), values), "here")
    assert same(found)
    assert len(found.notes) == 2


def test_vmapped_nnx():
    """The state of a model whose blocks nnx.vmap made and nnx.scan runs."""
    model = mixer_jax.create(SMALL, weights=random_weights(SMALL))
    flat = {tuple(name.split(".")): array for name, array in to_flax(random_weights(SMALL)).items()}
    blocks = [{path[2:]: array for path, array in flat.items() if path[:2] == ("blocks", str(i))} for i in range(2)]
    state = {"/".join(path): array for path, array in flat.items() if path[0] != "blocks"}
    state |= {"/".join(("blocks", *path)): jnp.stack([block[path] for block in blocks]) for path in blocks[0]}
    found = recognise_weights(state, "here")
    assert same(found)
    # Stored with its variables, each name ends in "value".
    assert same(recognise_weights({f"{name}/value": array for name, array in state.items()}, "here"))
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert same(recognise_weights(pure, "here"))


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "tutorial"])
def test_what_is_not_stacked_stays(format):
    arrays = to_format(model_weights(SMALL), format)
    result, notes = unstack(arrays)
    assert not notes
    assert identical(result, arrays)


def test_folders_of_steps(tmp_path):
    for step in (5, 10, 9):
        write(tmp_path / f"checkpoint_{step}", {"params": flax_tree(step)})
    found = load_weights(tmp_path)
    assert same(found, 10)
    assert found.notes == (f"checkpoint_10 in {tmp_path}",)
    assert same(load_weights(tmp_path / "checkpoint_5"), 5)


def test_folders_of_orbax(tmp_path):
    bfloat16 = jax.tree.map(lambda array: jnp.asarray(array, jnp.bfloat16), flax_tree())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {"params": flax_tree(), "step": 3})
        checkpointer.save(tmp_path / "half", {"params": bfloat16})
    assert same(load_weights(tmp_path / "plain"))
    half = load_weights(tmp_path / "half").arrays["norm.weight"]
    assert half.dtype == np.float32
    assert (half == np.asarray(bfloat16["pre_head_layer_norm"]["scale"], np.float32)).all()
    checkpoints.save_checkpoint(tmp_path / "flax", {"params": flax_tree(1)}, 7)
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave({"params": flax_tree(step)}))
    assert same(load_weights(tmp_path / "flax"), 1)
    found = load_weights(tmp_path / "manager")
    assert same(found, 10)
    assert found.notes == (f"10/default in {tmp_path / 'manager'}",)
    (tmp_path / "plain" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"plain is no complete folder of Orbax .*use another copy"):
        load_weights(tmp_path / "plain")


def test_a_folder_of_orbax_without_jax(tmp_path, monkeypatch):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {"params": flax_tree()})
    from mixer_common import plugins

    monkeypatch.setattr(plugins, "entry_points", lambda **selection: ())
    with pytest.raises(UserError, match=r"plain is a folder of Orbax: JAX is needed here .*msgpack_serialize"):
        load_weights(tmp_path / "plain")
