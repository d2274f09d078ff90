import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rar_jax.checkpoints.weights import load_weights, save_weights
from rar_jax.errors import UserError
from rar_jax.training.finetune import check_sizes, merge_params
from rar_jax.training.run import prepare


@pytest.fixture(scope="module")
def initial(golden_model):
    def make(model, seed=1):
        tokens = np.zeros((1, 1), np.int32)
        orders = np.zeros((1, model.config.num_tokens), np.int32)
        init = jax.jit(model.init)
        return jax.device_get(init(jax.random.key(seed), tokens, tokens[0], orders)["params"])

    return make


def test_all_parameters_are_copied_if_the_sizes_are_equal(golden, golden_model, initial):
    params, left = merge_params(golden_model.config, initial(golden_model), golden_model.config, golden.params)
    assert left == []
    jax.tree.map(np.testing.assert_array_equal, params, golden.params)


def test_codes_and_the_null_class_are_copied_if_the_classes_differ(golden, golden_model, initial):
    classes, codes = golden_model.config.num_classes, golden_model.config.codebook_size + 1
    model = golden_model.clone(config=dataclasses.replace(golden_model.config, num_classes=classes + 3))
    before = initial(model)
    params, left = merge_params(model.config, before, golden_model.config, golden.params)
    assert left == ["embeddings/embedding (classes)"]
    table, theirs = params["embeddings"]["embedding"], golden.params["embeddings"]["embedding"]
    np.testing.assert_array_equal(table[:codes], theirs[:codes])
    np.testing.assert_array_equal(table[codes:-1], before["embeddings"]["embedding"][codes:-1])
    np.testing.assert_array_equal(table[-1], theirs[-1])
    np.testing.assert_array_equal(params["lm_head"]["kernel"], golden.params["lm_head"]["kernel"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"codebook_size": 30}, {"embeddings/embedding (codes)", "lm_head/bias", "lm_head/kernel"}),
        ({"grid_side": 2}, {"position_embedding", "step_embedding", "target_aware_embedding"}),
    ],
)
def test_another_codebook_or_grid(golden, golden_model, initial, change, expected):
    model = golden_model.clone(config=dataclasses.replace(golden_model.config, **change))
    before = initial(model)
    params, left = merge_params(model.config, before, golden_model.config, golden.params)
    assert set(left) == expected
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, before)
    np.testing.assert_array_equal(
        params["blocks"]["mlp"]["fc1"]["kernel"], golden.params["blocks"]["mlp"]["fc1"]["kernel"]
    )


def test_what_the_network_does_not_have_is_listed(golden, golden_model, initial):
    model = golden_model.clone(config=dataclasses.replace(golden_model.config, target_aware=False))
    params, left = merge_params(model.config, initial(model), golden_model.config, golden.params)
    assert left == ["target_aware_embedding (left out)"] and "target_aware_embedding" not in params


def test_another_size_is_refused(golden_model):
    with pytest.raises(UserError, match=r"config\.model\.depth=3, not 5: only classes, codebook and grid may differ"):
        check_sizes(dataclasses.replace(golden_model.config, depth=5), golden_model.config)


def test_a_run_starts_from_a_published_file(golden, golden_model, small_config, tmp_path, caplog):
    save_file(golden.tensors("params/"), tmp_path / "rar.safetensors")
    sizes = {
        name: getattr(golden_model.config, name) for name in ("width", "depth", "num_heads", "mlp_width", "grid_side")
    }
    config = small_config(
        model=sizes
        | {"codebook_size": golden_model.config.codebook_size, "num_classes": golden_model.config.num_classes + 2},
        data={"name": "synthetic", "tokenizer": "none", "num_images": 64, "image_size": golden_model.config.grid_side},
        train={"stop_step": 1, "ema_decay": 0.5},
    )
    config = dataclasses.replace(config, init_from=str(tmp_path / "rar.safetensors"))
    caplog.set_level("INFO", "rar_jax")
    run = prepare(config, tmp_path / "run")
    state, position = run.begin()
    assert position == {}
    jax.tree.map(np.testing.assert_array_equal, state.params["blocks"], golden.params["blocks"])
    jax.tree.map(np.testing.assert_array_equal, state.ema["blocks"], golden.params["blocks"])
    messages = [record.getMessage() for record in caplog.records if "reinitialised" in record.getMessage()]
    assert messages[0].endswith("reinitialised or left out: embeddings/embedding (classes)")
    run.close()
    with pytest.raises(UserError, match=r"config\.init_from=nothing\.bin: no weights in 'nothing\.bin'"):
        prepare(dataclasses.replace(config, init_from="nothing.bin"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    # A converted folder is no run that could be resumed.
    save_weights(tmp_path / "converted", dataclasses.replace(load_weights(tmp_path / "rar.safetensors"), config=config))
    run = prepare(config, tmp_path / "converted")
    with pytest.raises(UserError, match=r"holds converted weights and no run: .* --config\.init_from=.*converted"):
        run.begin()
    run.close()
