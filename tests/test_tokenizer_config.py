import json
import runpy

import pytest
from conftest import ROOT

from rar_jax.errors import UserError
from rar_jax.schema import build_config, check_run, to_config_dict, unknown_field
from rar_jax.tokenizer_config import TokenizerConfig


def config_file(name, **data):
    fields = runpy.run_path(str(ROOT / "configs" / "tokenizers" / f"{name}.py"))["get_config"]()
    fields.data.update(data)
    return fields


def test_the_configs_are_valid_and_survive_json():
    for fields in (config_file("glyphs"), config_file("f16", images="images")):
        config = build_config(fields, TokenizerConfig)
        assert build_config(json.loads(json.dumps(to_config_dict(config).to_dict())), TokenizerConfig) == config
    assert config.model.downsampling == 16 and config.last_step == config.train.steps


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.width", 44, r"has a level of 88 channels, which do not divide into 5 groups"),
        ("model.groups", 3, r"channels, which do not divide into 3 groups \(config\.model\.groups=3\)"),
        ("model.multipliers", (), r"multipliers=\(\) must be whole numbers of at least 1"),
        ("model.codebook_size", 512, r"makes 1024 codes of 4 numbers: config\.model\.codebook_size=512"),
        ("model.latent_width", 5, r"config\.model\.latent_width=5 must be equal"),
        ("quantizer.levels", (8, 8, 16, 1), r"levels=\(8, 8, 16, 1\) must be whole numbers of at least 2"),
        ("quantizer.kind", "ema", r"kind='ema' must be one of fsq, vq"),
        ("data.image_size", 30, r"image_size=30 must be a multiple of 4"),
        ("data.images", "folder", r"data\.images='folder' has no effect with config\.data\.name=glyphs"),
        ("data.name", "folder", r"data\.images is empty: name the images with --images=DIR"),
        ("optimizer.warmup_steps", 5500, r"warmup_steps=5500 must be below config\.train\.steps=5500"),
        ("loss.discriminator_width", 88, r"discriminator_width=88 makes layers of \[176, 352, 704\] channels"),
        ("loss.discriminator_width", 15, r"discriminator_width=15 makes layers"),
    ],
)
def test_bad_values(path, value, message):
    fields = config_file("glyphs")
    section, field = path.split(".")
    fields[section][field] = value
    with pytest.raises(UserError, match=message):
        build_config(fields, TokenizerConfig)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.eval_images", "test", r"data\.eval_images='test' has no effect with config\.data\.name=glyphs"),
        ("loss.adversarial", 0.5, r"adversarial=0\.5 has no effect before .*start=20000, but the run has 5500 steps"),
        ("checkpoint.keep_every", 1, r"keep_every=1 must be a multiple of config\.checkpoint\.every="),
    ],
)
def test_a_run_needs_more_than_a_stored_config(path, value, message):
    fields = config_file("glyphs")
    section, field = path.split(".")
    fields[section][field] = value
    config = build_config(fields, TokenizerConfig)
    with pytest.raises(UserError, match=message):
        check_run(config)


def test_an_unknown_field_is_named_with_the_nearest():
    assert "nearest: quantizer.commitment" in unknown_field("quantizer.comitment", TokenizerConfig)
