import importlib.util

import numpy as np
import pytest
from running import call, refusal
from safetensors.numpy import load_file, save_file


def test_published_weights_are_converted_and_back(golden, vqgan_file, tmp_path):
    """A file is converted to a folder and back, and the file and the folder give the same samples."""
    published = tmp_path / "rar.safetensors"
    save_file(golden.tensors("params/"), published)
    heads = golden.config["heads"]
    for file, flag, message in (
        (published, heads + 1, f"--num_heads={heads + 1}, but the tensors of {published} have {heads} heads: remove"),
        (vqgan_file, heads, f"--num_heads={heads} is for a RAR, but {vqgan_file} holds vqgan weights: remove it"),
    ):
        refused = refusal("convert", f"--input={file}", f"--output={tmp_path / 'rar'}", f"--num_heads={flag}")
        assert message in refused and not (tmp_path / "rar").exists()
    given = f"--num_heads={heads}"
    converted = call("convert", f"--input={published}", f"--output={tmp_path / 'rar'}", given)
    assert converted.returncode == 0, converted.stderr
    tokenizer = call("convert", f"--input={vqgan_file}", f"--output={tmp_path / 'vqgan'}")
    assert tokenizer.returncode == 0 and tokenizer.stdout.strip().endswith("vqgan weights")
    back = call("convert", f"--input={tmp_path / 'rar'}", f"--output={tmp_path / 'back.safetensors'}")
    assert back.returncode == 0, back.stderr
    tensors = load_file(tmp_path / "back.safetensors")
    for name, tensor in golden.tensors("params/").items():
        assert tensors[name].tobytes() == tensor.tobytes()
    sources = {"of_file": (published, vqgan_file), "of_folder": (tmp_path / "rar", tmp_path / "vqgan")}
    for name, (checkpoint, weights) in sources.items():
        options = ["--num=4", "--classes=1,2", f"--out={tmp_path / name}", "--npz"]
        sampled = call("sample", f"--checkpoint={checkpoint}", f"--tokenizer={weights}", *options)
        assert sampled.returncode == 0, sampled.stderr
    of_file, of_folder = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("of_file", "of_folder"))
    assert of_file.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(of_file, of_folder)
    again = call("convert", f"--input={published}", f"--output={tmp_path / 'rar'}")
    assert again.returncode == 2 and "exists already" in again.stderr
    pickled = call("convert", f"--input={published}", f"--output={tmp_path / 'new' / 'model.bin'}")
    assert pickled.returncode == 2 and "weights are written as a folder or as a .safetensors file" in pickled.stderr
    assert not (tmp_path / "new").exists()
    other = call("sample", f"--checkpoint={vqgan_file}", f"--tokenizer={vqgan_file}")
    assert other.returncode == 2 and "rar weights are needed" in other.stderr


def test_a_published_file_cannot_be_on_a_bucket():
    message = "gs://bucket/a.safetensors: .safetensors files are read and written on disks only"
    assert message in refusal("convert", "--input=a.bin", "--output=gs://bucket/a.safetensors")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed and asks the bucket")
def test_without_gcsfs_one_line_says_how_to_get_it():
    message = "gs:// needs the package gcsfs: install it with launch/install.sh tpu"
    assert message in refusal("convert", "--input=gs://bucket/run", "--output=a")
