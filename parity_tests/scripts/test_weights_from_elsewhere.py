"""The scripts with weights that lie on the Hugging Face hub or at an address of the web."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data.cifar_archives import closed_port_url
from helpers import DIGITS, SCRIPTS, TINY, model_weights
from weights.file_server import Files, serve_files

from mixer_common.weights.files import save_weights


@pytest.fixture
def files(tmp_path):
    save_weights(tmp_path / "tiny.safetensors", model_weights(TINY), "timm")
    data = (tmp_path / "tiny.safetensors").read_bytes()
    with serve_files(Files(content={"/tiny.safetensors": data})) as files:
        files.repositories["me/tiny"] = {"model.safetensors": data, "config.json": b"{}"}
        yield files


def run(name: str, *arguments: object, endpoint: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, since huggingface_hub reads the environment once."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub")}
    command = [sys.executable, SCRIPTS / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


def test_a_repository_of_the_hub_is_converted_and_trained(files, tmp_path):
    done = run("convert", "hf:me/tiny", tmp_path / "a.npz", "--to", "npz", endpoint=files.url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    origin = f"hf:me/tiny@{files.commit('me/tiny')}"
    assert f"Source   hf:me/tiny: timm, {TINY.num_parameters:,} parameters" in done.stdout
    assert f"Read     {origin}\n" in done.stdout
    # Without the hub, the training begins from the cache.
    absent = closed_port_url().rpartition("/")[0]
    out = tmp_path / "run"
    options = ("--dataset", "digits", "--steps", 3, "--init-from", "hf:me/tiny", "--out", out)
    done = run("train_torch", *options, endpoint=absent, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{origin}, from the cache: the hub cannot be reached" in done.stdout
    assert json.loads((out / "config.json").read_text())["init_from"] == origin
    done = run("convert", "hf:me/other", tmp_path / "b.npz", "--to", "npz", endpoint=absent, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hf:me/other is not in the cache")
    assert len(done.stderr.splitlines()) == 1


def test_an_address_of_the_web(script, files, tmp_path):
    address = f"{files.url}/tiny.safetensors"
    code, stdout, _ = script("convert", address, tmp_path / "a.npz", "--to", "npz")
    assert code == 0
    assert f"Read     {address}#sha256=" in stdout
    code, stdout, _ = script(
        "train_torch", *DIGITS[:2], "--steps", 3, "--init-from", address, "--out", tmp_path / "run"
    )
    assert code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] in stdout
    code, _, stderr = script("convert", f"{files.url}/b.npz", tmp_path / "b.npz", "--to", "npz")
    assert code == 2
    assert "the host answers 404" in stderr
