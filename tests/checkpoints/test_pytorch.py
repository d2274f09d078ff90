import jax
import ml_dtypes
import numpy as np
import pytest

from rar_jax.checkpoints.pytorch import (
    inception_from_pytorch,
    kind_of,
    rar_from_pytorch,
    rar_layout,
    rar_sizes,
    rar_to_pytorch,
    vqgan_from_pytorch,
    vqgan_name,
    vqgan_to_pytorch,
)
from rar_jax.errors import UserError
from rar_jax.models.inception import InceptionV3
from rar_jax.models.sizes import VQGANConfig
from rar_jax.models.vqgan import VQGAN


@pytest.mark.parametrize(
    ("name", "depth", "width", "mlp_width"),
    [("rar_b", 24, 768, 3072), ("rar_l", 24, 1024, 4096), ("rar_xl", 32, 1280, 5120), ("rar_xxl", 40, 1408, 6144)],
)
def test_every_tensor_of_the_published_sizes_is_covered(golden_json, name, depth, width, mlp_width):
    layout = {n: tuple(shape) for n, shape in golden_json("checkpoint_layouts.json")[name].items()}
    # Broadcast arrays have these shapes but take no memory.
    sizes = rar_sizes({n: np.broadcast_to(np.float32(0), shape) for n, shape in layout.items()})
    assert sizes == {
        "grid_side": 16,
        "codebook_size": 1024,
        "num_classes": 1000,
        "width": width,
        "depth": depth,
        "num_heads": 16,
        "mlp_width": mlp_width,
    }
    assert rar_layout(sizes) == layout


def test_missing_and_unknown_tensors_are_all_named(golden):
    tensors = golden.tensors("params/")
    del tensors["blocks.1.norm2.bias"], tensors["lm_head.bias"]
    tensors["surprise"], tensors["lm_head.weight"] = np.zeros(3), np.zeros((24, 5))
    expected = (
        r"missing \['blocks.1.norm2.bias', 'lm_head.bias'\], unknown \['surprise'\], "
        r"misshapen \['lm_head.weight is \(24, 5\), not"
    )
    with pytest.raises(UserError, match=expected):
        rar_from_pytorch(tensors)
    with pytest.raises(UserError, match=r"tensors missing \['embeddings.weight', .*'blocks.0.attn.q_norm.weight'\]"):
        rar_from_pytorch({"w": np.zeros(3)})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("timesteps_embeddings", (116,), r"misshapen timesteps_embeddings, \(116,\)"),
        ("blocks.0.attn.q_norm.weight", (0,), r"misshapen blocks.0.attn.q_norm.weight, \(0,\)"),
        ("blocks.0.attn.q_norm.weight", (7,), "its width of 48 is not divisible by the head width of 7"),
        ("blocks.0.mlp.fc1.weight", (), r"misshapen blocks.0.mlp.fc1.weight, \(\)"),
        ("embeddings.weight", (48,), r"misshapen embeddings.weight, \(48,\)"),
        ("embeddings.weight", (26, 48), "26 embeddings of 24 codes leave none for classes"),
    ],
)
def test_shapes_that_give_no_sizes_are_refused(golden, name, shape, message):
    with pytest.raises(UserError, match=f"^not a RAR checkpoint: {message}"):
        rar_from_pytorch(golden.tensors("params/") | {name: np.zeros(shape, np.float32)})


def test_without_a_target_aware_embedding_the_published_form_has_zeros(golden):
    params = {name: value for name, value in golden.params.items() if name != "target_aware_embedding"}
    tensors = rar_to_pytorch(params)
    assert tensors.keys() == golden.tensors("params/").keys()
    assert not tensors["target_aware_pos_embed"].any()


@pytest.fixture(scope="module")
def vqgan_layout(golden_json):
    """Every tensor of the published f16 tokenizer, each filled with different noise."""
    rng = np.random.default_rng(0)
    layout = golden_json("checkpoint_layouts.json")["maskgit_vqgan_imagenet_f16_256"]
    return {name: rng.standard_normal(shape, np.float32) for name, shape in layout.items()}


def test_every_tensor_of_the_published_tokenizer_is_covered(vqgan_layout):
    model, params = vqgan_from_pytorch(vqgan_layout)
    assert model == VQGAN(VQGANConfig(groups=32))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    ours = {vqgan_name(jax.tree_util.keystr(path, simple=True, separator="/")): leaf for path, leaf in leaves}
    assert ours.keys() == vqgan_layout.keys()
    for name, tensor in vqgan_layout.items():
        expected = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        np.testing.assert_array_equal(ours[name], expected)
    back = vqgan_to_pytorch(params)
    assert back.keys() == vqgan_layout.keys()
    for name, tensor in vqgan_layout.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_all_tensors_that_do_not_fit_the_tokenizer_are_named(vqgan_layout):
    tensors = dict(vqgan_layout)
    del tensors["decoder.norm_out.bias"], tensors["encoder.down.3.block.1.conv2.weight"]
    tensors["loss.discriminator"] = np.zeros(3)
    tensors["decoder.conv_in.bias"] = np.zeros(7)
    expected = (
        r"missing \['decoder.norm_out.bias', 'encoder.down.3.block.1.conv2.weight'\], "
        r"unknown \['loss.discriminator'\], misshapen \['decoder.conv_in.bias is \(7,\), not \(512,\)'\]"
    )
    with pytest.raises(UserError, match=expected):
        vqgan_from_pytorch(tensors)
    with pytest.raises(UserError, match=r"not a MaskGIT-VQGAN: tensors missing .*quantize\.embedding\.weight"):
        vqgan_from_pytorch({"lm_head.weight": np.zeros((3, 3))})


def test_every_tensor_of_the_published_inception_network_is_covered(inception_tensors):
    model, params = inception_from_pytorch(inception_tensors)
    assert model == InceptionV3()
    np.testing.assert_array_equal(
        params["Mixed_7b"]["branch3x3dbl_3a"]["conv"]["kernel"][0, 2],
        inception_tensors["Mixed_7b.branch3x3dbl_3a.conv.weight"][:, :, 0, 2].T,
    )


def test_another_inception_v3_is_refused_by_its_tensors(inception_tensors):
    """The network of torchvision has 1,000 classes and an auxiliary head."""
    tensors = dict(inception_tensors)
    del tensors["Mixed_5b.branch_pool.bn.num_batches_tracked"], tensors["Mixed_6a.branch3x3.conv.weight"]
    tensors["AuxLogits.fc.bias"] = np.zeros(1000)
    tensors["fc.weight"] = np.zeros((1000, 2048))
    expected = (
        r"not a FID Inception network: tensors missing \['Mixed_5b.branch_pool.bn.num_batches_tracked', "
        r"'Mixed_6a.branch3x3.conv.weight'\], unknown \['AuxLogits.fc.bias'\], "
        r"misshapen \['fc.weight is \(1000, 2048\), not \(1008, 2048\)'\]"
    )
    with pytest.raises(UserError, match=expected):
        inception_from_pytorch(tensors)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_tensors_with_numbers_that_are_not_finite_are_named(golden, vqgan_layout, inception_tensors, wrong):
    for tensors, name, from_pytorch in (
        (golden.tensors("params/"), "lm_head.bias", rar_from_pytorch),
        (golden.tensors("params/"), "blocks.1.attn.qkv.weight", rar_from_pytorch),
        (vqgan_layout, "decoder.conv_in.bias", vqgan_from_pytorch),
        (inception_tensors, "Mixed_5b.branch1x1.bn.running_var", inception_from_pytorch),
    ):
        bad = np.array(tensors[name])
        bad.flat[[0, 3]] = wrong
        with pytest.raises(UserError, match=rf"^2 of the {bad.size} numbers of tensor {name} are not finite"):
            from_pytorch(tensors | {name: bad})
    half = golden["params/lm_head.bias"].astype(ml_dtypes.bfloat16)
    rar_from_pytorch(golden.tensors("params/") | {"lm_head.bias": half})
    half[1] = wrong
    with pytest.raises(UserError, match=r"^1 of the 24 numbers of tensor lm_head.bias"):
        rar_from_pytorch(golden.tensors("params/") | {"lm_head.bias": half})


def test_the_kind_follows_from_the_names_of_the_tensors(golden, vqgan_layout, inception_tensors):
    assert kind_of(golden.tensors("params/")) == "rar"
    assert kind_of(vqgan_layout) == "vqgan"
    assert kind_of(inception_tensors) == "inception"
    assert kind_of({"w": 0}) is None
