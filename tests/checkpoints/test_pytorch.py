import jax
import numpy as np
import pytest

from rar_jax.checkpoints.pytorch import rar_from_pytorch, rar_to_pytorch


def test_round_trip(golden):
    tensors = golden.tensors("params/")
    back = rar_to_pytorch(rar_from_pytorch(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_blocks_keep_their_order(golden):
    params = rar_from_pytorch(golden.tensors("params/"))
    for i in range(3):
        np.testing.assert_array_equal(
            params["blocks"]["mlp"]["fc1"]["kernel"][i], golden[f"params/blocks.{i}.mlp.fc1.weight"].T
        )


def test_missing_and_unknown_tensors_are_all_named(golden):
    tensors = golden.tensors("params/")
    del tensors["blocks.1.norm2.bias"], tensors["lm_head.bias"]
    tensors["surprise"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"missing \['blocks.1.norm2.bias', 'lm_head.bias'\], unknown \['surprise'\]"):
        rar_from_pytorch(tensors)


def test_the_tree_is_the_models(golden, golden_model):
    tokens = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(golden_model.init, jax.random.key(0), tokens, tokens[0], np.zeros((1, 16), np.int32))
    ours = jax.tree.map(lambda x: x.shape, shapes["params"])
    assert ours == jax.tree.map(lambda x: x.shape, golden.params)
