import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rar_jax.checkpoints.pytorch import rar_to_pytorch
from rar_jax.checkpoints.tensor_files import write_safetensors
from rar_jax.checkpoints.weights import fingerprint, load_weights, published_form, save_weights
from rar_jax.errors import UserError


@pytest.fixture(scope="module")
def rar_file(golden, tmp_path_factory):
    """The golden RAR as a published file."""
    path = tmp_path_factory.mktemp("rar") / "rar_tiny.safetensors"
    save_file(golden.tensors("params/"), path)
    return path


def test_a_published_file_is_converted_to_a_folder_and_back(rar_file, golden, golden_model, tmp_path):
    published = load_weights(rar_file)
    # tests/models and tests/sampling compare the logits of this network with the golden ones.
    assert published.kind == "rar"
    assert (
        published.model.clone(config=dataclasses.replace(published.model.config, dropout=0.0, attention_dropout=0.0))
        == golden_model
    )
    jax.tree.map(np.testing.assert_array_equal, published.params, golden.params)
    save_weights(tmp_path / "converted", published)
    converted = load_weights(tmp_path / "converted", "rar")
    assert converted.config == published.config and converted.model == published.model
    jax.tree.map(np.testing.assert_array_equal, converted.params, published.params)
    jax.tree.map(
        np.testing.assert_array_equal, load_weights(tmp_path / "converted" / "checkpoints" / "0").params, golden.params
    )
    write_safetensors(tmp_path / "back.safetensors", rar_to_pytorch(converted.params))
    back, before = load_file(tmp_path / "back.safetensors"), golden.tensors("params/")
    assert back.keys() == before.keys()
    for name, tensor in before.items():
        assert back[name].dtype == tensor.dtype and back[name].tobytes() == tensor.tobytes(), name


def test_the_file_of_a_run_keeps_its_config_and_step(rar_file, tmp_path):
    published = load_weights(rar_file)
    config = dataclasses.replace(
        published.config,
        permutation=dataclasses.replace(published.config.permutation, scan_order="z_curve", final_randomness=0.5),
        sample=dataclasses.replace(published.config.sample, guidance_scale=2.5),
    )
    run = dataclasses.replace(published, step=7, config=config)
    tensors, metadata = published_form(run)
    write_safetensors(tmp_path / "run.safetensors", tensors, metadata)
    read = load_weights(tmp_path / "run.safetensors")
    assert (read.config, read.step, read.model) == (config, 7, published.model)
    # Zeros stand for target-aware embeddings that a network does not have.
    model = dataclasses.replace(config.model, target_aware=False)
    params = {name: value for name, value in published.params.items() if name != "target_aware_embedding"}
    without = dataclasses.replace(run, params=params, config=dataclasses.replace(config, model=model))
    write_safetensors(tmp_path / "without.safetensors", *published_form(without))
    read = load_weights(tmp_path / "without.safetensors")
    assert read.model == published.model and not read.params["target_aware_embedding"].any()
    wrong = metadata["rar_jax_config"].replace(f'"depth": {config.model.depth}', '"depth": 9')
    for changed, message in (
        ({"rar_jax_step": "last"}, "metadata rar_jax_step='last' must be a number"),
        ({"rar_jax_config": "{"}, "Expecting property name"),
        ({"rar_jax_config": wrong}, r"metadata rar_jax_config has model\.depth=9, but its tensors have"),
    ):
        write_safetensors(tmp_path / "wrong.safetensors", tensors, metadata | changed)
        with pytest.raises(UserError, match=rf"wrong\.safetensors: .*{message}"):
            load_weights(tmp_path / "wrong.safetensors")


def test_weights_are_identified_by_the_bytes_of_their_files(rar_file, golden, tmp_path):
    published = load_weights(rar_file)
    assert published.identity == hashlib.sha256(rar_file.read_bytes()).hexdigest()[:12]
    # The identity does not depend on the dtype. The fingerprint depends on the numbers only.
    assert load_weights(rar_file, dtype=None).identity == published.identity
    save_weights(tmp_path / "run", published)
    converted = load_weights(tmp_path / "run")
    assert converted.identity != published.identity
    assert fingerprint(converted.params) == fingerprint(published.params)
    checkpoint = tmp_path / "run" / "checkpoints" / "0"
    recorded = json.loads((checkpoint / "manifest.json").read_text())
    lines = "".join(f"{recorded[name]} {name}\n" for name in sorted(recorded))
    assert converted.identity == hashlib.sha256(lines.encode()).hexdigest()[:12]
    # It is the same checkpoint in another folder, by its step, and without a manifest.
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "copy" / "checkpoints" / "0" / "manifest.json").unlink()
    assert load_weights(tmp_path / "copy").identity == load_weights(checkpoint).identity == converted.identity
    tensors = golden.tensors("params/")
    tensors["lm_head.bias"] = tensors["lm_head.bias"] + np.float32(1)
    save_file(tensors, tmp_path / "other.safetensors")
    assert load_weights(tmp_path / "other.safetensors").identity != published.identity


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_the_requested_dtype_overrides_the_stored_one(golden, tmp_path, stored):
    tensors = {name: tensor.astype(stored) for name, tensor in golden.tensors("params/").items()}
    save_file(tensors, tmp_path / "rar.safetensors")
    whole = load_weights(tmp_path / "rar.safetensors")
    save_weights(tmp_path / "folder", whole)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(whole.params)} == {"float32"}
    for path in (tmp_path / "rar.safetensors", tmp_path / "folder"):
        for dtype in ("bfloat16", None):
            half = load_weights(path, dtype=dtype)
            assert half.model == whole.model.clone(dtype=jnp.dtype("bfloat16"))
            jax.tree.map(
                np.testing.assert_array_equal, half.params, jax.tree.map(lambda x: x.astype("bfloat16"), whole.params)
            )


def test_a_tokenizer(vqgan_file, tmp_path):
    published = load_weights(vqgan_file, "vqgan")
    save_weights(tmp_path / "vqgan", published)
    converted = load_weights(tmp_path / "vqgan", "vqgan")
    assert converted.model == published.model
    jax.tree.map(np.testing.assert_array_equal, converted.params, published.params)


def test_the_inception_network(inception_tensors, tmp_path):
    save_file(inception_tensors, tmp_path / "published.safetensors")
    published = load_weights(tmp_path / "published.safetensors", "inception")
    save_weights(tmp_path / "converted", published)
    converted = load_weights(tmp_path / "converted", "inception")
    assert converted.kind == "inception" and converted.model == published.model
    write_safetensors(tmp_path / "back.safetensors", *published_form(converted))
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == inception_tensors.keys()
    for name, tensor in inception_tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert back[name].tobytes() == tensor.tobytes(), name


def test_missing_damaged_and_unsuitable_weights_are_refused(vqgan_file, rar_file, tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        load_weights(tmp_path / "nothing.bin")
    with pytest.raises(UserError, match=r"no run in .*it has no config\.json"):
        load_weights(tmp_path)
    with pytest.raises(UserError, match=r"holds vqgan weights; rar weights are needed"):
        load_weights(vqgan_file, "rar")
    # The kind of a run is in its config, and is checked before its checkpoints are read.
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "config.json").write_text('{"kind": "vqgan"}')
    with pytest.raises(UserError, match=r"holds vqgan weights; rar weights are needed"):
        load_weights(tmp_path / "kind", "rar")
    # A version with other sizes may have written it.
    (tmp_path / "kind" / "config.json").write_text('{"kind": "vqgan", "model": {"colour": 1}}')
    with pytest.raises(UserError, match=r"kind/config\.json: config has no field 'model\.colour'"):
        load_weights(tmp_path / "kind", "vqgan")
    with pytest.raises(UserError, match="is a file of weights and has no step 3"):
        load_weights(rar_file, "rar", step=3)
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UserError, match="is the checkpoint of step 5, not of step 3: leave the step out"):
        load_weights(tmp_path / "run" / "checkpoints" / "5", step=3)
    with pytest.raises(UserError, match=r"w\.safetensors: \.safetensors files are read and written on disks"):
        write_safetensors("gs://bucket/w.safetensors", {})
    with pytest.raises(FileNotFoundError):
        write_safetensors(tmp_path / "nowhere" / "w.safetensors", {"w": np.zeros(3)})
    save_file({"w": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"does not hold a RAR, a MaskGIT-VQGAN or .*; its first tensors are \['w'\]"):
        load_weights(tmp_path / "other.safetensors")
    save_weights(tmp_path / "converted", load_weights(rar_file))
    with pytest.raises(UserError, match="exists already"):
        save_weights(tmp_path / "converted", load_weights(rar_file))
    damaged = max((tmp_path / "converted").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        load_weights(tmp_path / "converted")


@pytest.mark.parametrize(
    ("groups", "message"),
    [("many", r"metadata groups='many' must be a number"), ("7", r"a norm of \d+ channels cannot have 7 groups")],
)
def test_the_groups_of_a_tokenizer_are_checked(vqgan_file, tmp_path, groups, message):
    file = tmp_path / "tokenizer.safetensors"
    write_safetensors(file, load_file(vqgan_file), {"groups": groups})
    with pytest.raises(UserError, match=message):
        load_weights(file)
