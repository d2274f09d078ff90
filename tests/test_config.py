import json

import ml_collections
import pytest
from running import config_file

from rar_jax.config import Config, from_config_dict, imagenet, mesh_shape, without_data
from rar_jax.errors import UserError
from rar_jax.schema import allowed_changes, check, check_run, check_same_run, to_config_dict, unknown_field


def changed(path, value, name="digits"):
    fields = config_file(name)
    section, field = path.split(".")
    fields[section][field] = value
    return fields


@pytest.mark.parametrize(
    ("name", "width", "depth", "mlp_width", "guidance"),
    [
        ("rar_b", 768, 24, 3072, (16.0, 2.75, 1.0)),
        ("rar_l", 1024, 24, 4096, (15.5, 2.5, 1.02)),
        ("rar_xl", 1280, 32, 5120, (6.9, 1.5, 1.02)),
        ("rar_xxl", 1408, 40, 6144, (8.0, 1.2, 1.02)),
    ],
)
def test_recipes_of_the_paper(name, width, depth, mlp_width, guidance):
    fields = config_file(name)
    fields.data.path = "somewhere"
    config = from_config_dict(fields)
    model, sample = config.model, config.sample
    assert (config.name, model.width, model.depth, model.mlp_width, model.num_heads) == (
        name,
        width,
        depth,
        mlp_width,
        16,
    )
    assert (sample.guidance_scale, sample.guidance_power, sample.temperature) == guidance
    assert config.steps_per_epoch == 625 and config.total_steps == 250_000
    assert config.anneal_steps == (125_000, 187_500)
    assert config.model.num_tokens == 256


def test_stop_step_ends_early_and_never_late():
    assert from_config_dict(changed("train.stop_step", 10)).last_step == 10
    config = from_config_dict(changed("train.stop_step", 10**9))
    assert config.last_step == config.total_steps


def test_json_round_trip():
    config = from_config_dict(config_file("digits"))
    assert from_config_dict(json.loads(json.dumps(to_config_dict(config).to_dict()))) == config


def test_a_config_without_data_names_the_field_to_set():
    with pytest.raises(UserError, match=r"config\.data\.path is empty.*--config\.data\.name=synthetic"):
        from_config_dict(imagenet())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.image_size", 16, r"image_size=16 must be config\.model\.grid_side=8 times"),
        ("model.grid_side", 4, r"image_size=8 must be .*grid_side=4"),
        ("model.width", 65, r"width=65 must be divisible by config\.model\.num_heads=2"),
        ("model.dropout", 1.0, r"model\.dropout=1\.0 must be at least 0 and below 1"),
        ("permutation.scan_order", "zigzag", r"permutation\.scan_order: unknown scan order 'zigzag'"),
        ("permutation.anneal_start_epoch", 10, r"anneal_start_epoch=10 must be from 0 to .*anneal_end_epoch=9"),
        ("train.accumulation", 3, r"batch_size=16 must be divisible by config\.train\.accumulation=3"),
        ("train.batch_size", 2000, r"batch_size=2000 is more than config\.data\.num_images=1437"),
        ("train.dtype", "float16", r"train\.dtype='float16' must be one of bfloat16, float32"),
        ("train.remat", "all", r"train\.remat='all' must be one of none, block, dots"),
        ("train.batch_size", 0, r"train\.batch_size=0 must be at least 1"),
        ("optimizer.warmup_epochs", 18, r"warmup_epochs=18 must be below config\.train\.epochs=18"),
        ("optimizer.clip_norm", 0.0, r"clip_norm=0\.0 must be above 0"),
        ("sample.guidance_power", 0.0, r"guidance_power=0\.0 must be above 0"),
        ("data.tokenizer", "none", r"report_samples=1000 must be 0 .*tokenizer=digits, not none"),
        ("eval.report_samples", 1, r"report_samples=1 must be 0 or at least 2"),
        ("eval.score_images", 1, r"score_images=1 must be at least 2"),
        (
            "eval.inception",
            "w.pth",
            r"score_every=267 scores .*weights with .*, or neither for the scores of the digits",
        ),
        (
            "eval.score_every",
            0,
            r"eval\.inception='' and config\.eval\.reference='a\.npz' score samples during the run: set",
        ),
        ("data.name", "cifar", r"data\.name='cifar' must be one of"),
        ("data.name", "records", r"data\.path is empty"),
    ],
)
def test_bad_values(path, value, message):
    fields = changed(path, value)
    if path == "eval.score_every":
        fields.eval.reference = "a.npz"
    with pytest.raises(UserError, match=message):
        from_config_dict(fields)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sample.steps", 65, r"config\.sample: steps=65 must be at most 64"),
        ("checkpoint.keep_every", 801, r"keep_every=801 must be a multiple of config\.checkpoint\.every=534"),
    ],
)
def test_a_run_needs_more_than_a_stored_config(path, value, message):
    config = from_config_dict(changed(path, value))
    with pytest.raises(UserError, match=message):
        check_run(config)


def test_fields_that_may_change_are_named_with_or_without_config():
    config = Config()
    assert allowed_changes(config, ["model.dropout", "config.seed"]) == ["model.dropout", "seed"]
    for name, message in (
        ("model.dropuot", r"no field .* nearest: model\.dropout"),
        ("model", "it is a section"),
    ):
        with pytest.raises(UserError, match=f"--allow_config_change={name}: .*{message}"):
            allowed_changes(config, [name])


def test_a_benchmark_refuses_the_config_of_a_tokenizer():
    with pytest.raises(UserError, match="config has no field 'inception'"):
        without_data(config_file("tokenizers/f16"))


def test_report_needs_the_digits():
    fields = changed("data.name", "synthetic")
    with pytest.raises(UserError, match="report_samples=1000 scores samples of the digits"):
        from_config_dict(fields)


def test_scores_need_images_and_a_reference():
    fields = imagenet()
    fields.data.path, fields.eval.score_every, fields.eval.inception = "tokens", 100, "w.pth"
    with pytest.raises(UserError, match=r"score_every=100 scores samples: name the tokenizer that decodes"):
        from_config_dict(fields)
    fields.data.tokenizer = "vqgan.bin"
    with pytest.raises(UserError, match=r"and a reference with config\.eval\.reference$"):
        from_config_dict(fields)
    fields.eval.reference = "a.npz"
    assert from_config_dict(fields).eval.score_images == 5000


def test_a_spiral_needs_an_even_side():
    fields = config_file("digits")
    fields.model.grid_side = fields.data.image_size = 7
    fields.permutation.scan_order = "spiral_in"
    with pytest.raises(UserError, match=r"permutation\.scan_order: .*an even side"):
        from_config_dict(fields)


def test_unknown_missing_and_mistyped_fields():
    fields = config_file("digits").to_dict()
    fields["model"]["widht"] = 3
    with pytest.raises(UserError, match=r"no field 'model\.widht'; nearest: model\.width"):
        from_config_dict(fields)
    fields = config_file("digits").to_dict()
    del fields["seed"]
    with pytest.raises(UserError, match=r"config\.seed is missing"):
        from_config_dict(fields)
    fields = config_file("digits").to_dict()
    fields["model"]["width"] = "64"
    with pytest.raises(UserError, match=r"config\.model\.width='64' must be of type int"):
        from_config_dict(fields)
    with pytest.raises(UserError, match=r"config\.model=3 must be a section"):
        from_config_dict(config_file("digits").to_dict() | {"model": 3})


def test_config_files_cannot_add_fields():
    with pytest.raises((AttributeError, KeyError)):
        imagenet().model.widht = 3
    assert isinstance(imagenet(), ml_collections.ConfigDict)


@pytest.mark.parametrize(("path", "nearest"), [("batch_size", "train.batch_size"), ("optimizer.lr", "optimizer")])
def test_nearest_names(path, nearest):
    assert nearest in unknown_field(path, Config)


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "expected"),
    [
        (-1, 1, 1, (8, 1, 1)),
        (-1, 4, 1, (2, 4, 1)),
        (2, -1, 1, (2, 4, 1)),
        (1, 8, 1, (1, 8, 1)),
        (-1, 2, 2, (2, 2, 2)),
        (4, 1, -1, (4, 1, 2)),
    ],
)
def test_mesh_shape(data, fsdp, tensor, expected):
    fields = config_file("digits")
    fields.mesh.update(data=data, fsdp=fsdp, tensor=tensor)
    assert mesh_shape(from_config_dict(fields), 8) == expected


@pytest.mark.parametrize(
    ("mesh", "train", "message"),
    [
        ({"data": 3}, {}, "the product must be the number of devices, 8"),
        ({"data": 4, "fsdp": 1}, {}, "the product must be the number of devices, 8"),
        ({"data": -1, "fsdp": -1}, {}, "only one axis can be -1"),
        ({"data": 0}, {}, "at least 1"),
        ({"data": 1, "tensor": 8}, {}, r"mlp_width=36 must be divisible by the tensor axis of 8"),
        ({"data": 2, "tensor": 4}, {}, r"num_heads=2 must be divisible by the tensor axis of 4"),
        ({"data": -1, "fsdp": 2, "tensor": 3}, {}, "the product must be the number of devices, 8"),
        ({}, {"batch_size": 12}, r"is 12 images per microbatch, which must be divisible by the 8 devices"),
        ({}, {"batch_size": 16, "accumulation": 4}, r"is 4 images per microbatch"),
    ],
)
def test_bad_meshes(mesh, train, message):
    fields = config_file("digits")
    fields.mesh.update(**mesh)
    fields.train.update(**train)
    fields.model.mlp_width = 36
    config = from_config_dict(fields)
    check(config)
    with pytest.raises(UserError, match=message):
        mesh_shape(config, 8)


@pytest.mark.parametrize(("name", "free"), [("records", True), ("glyphs", False)])
def test_another_tokenizer_is_refused_if_it_makes_the_tokens(small_config, name, free):
    data = {"name": name, "path": "tokens", "tokenizer": "a"}
    saved, config = small_config(data=data), small_config(data=data | {"tokenizer": "b"})
    if free:
        assert check_same_run(config, saved) == ["config.data.tokenizer='a', not 'b'"]
    else:
        with pytest.raises(UserError, match=r"config\.data\.tokenizer='a', not 'b'"):
            check_same_run(config, saved)
        assert len(check_same_run(config, saved, ["data.tokenizer"])) == 1


def test_shapes_of_the_parameters_cannot_change(small_config):
    """The dropout of a resumed run may change, if that is asked for."""
    saved = small_config()
    config = small_config(model={"dropout": 0.3})
    with pytest.raises(UserError, match=r"override this check with --allow_config_change=model\.dropout$"):
        check_same_run(config, saved)
    assert len(check_same_run(config, saved, ["model.dropout"])) == 1
    config = small_config(model={"width": 32})
    with pytest.raises(UserError, match=r"config\.model\.width=16, not 32: .* use the stored values$"):
        check_same_run(config, saved, ["model.width"])


def test_scores_of_glyphs_need_no_other_network(small_config):
    data = {"name": "glyphs", "tokenizer": "a", "image_size": 32, "downsampling": 4}
    small_config(data=data, eval={"score_every": 5})
    with pytest.raises(UserError, match="name Inception weights"):
        small_config(data=data | {"image_size": 16, "downsampling": 2}, eval={"score_every": 5})
