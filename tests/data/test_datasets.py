import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rar_jax.data import datasets
from rar_jax.data.datasets import open_datasets, open_heldout
from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.glyphs import glyph_images
from rar_jax.data.pictures import center_square
from rar_jax.data.records import Description, write_records
from rar_jax.data.tokenizers import load_tokenizer
from rar_jax.errors import UserError


def test_digits(small_config):
    opened = open_datasets(small_config(), DigitsTokenizer())
    assert opened.train.num_images == 1437 and opened.heldout.num_images == 360


@pytest.fixture
def folder(tmp_path):
    images = [(np.zeros(64, int), label) for label in (0, 1, 1)]
    described = Description(grid_side=8, codebook_size=17, class_names=("a", "b"), tokenizer="digits", source="a test")
    write_records(tmp_path, images, described)
    return tmp_path


def config_for(small_config, folder, **changes):
    model = {"num_classes": 2} | changes.pop("model", {})
    data = {"name": "records", "path": str(folder), "num_images": 3} | changes
    return small_config(data=data, model=model, train={"batch_size": 1})


def test_records_with_and_without_heldout_images(small_config, folder):
    assert open_datasets(config_for(small_config, folder), None).heldout is None
    assert open_datasets(config_for(small_config, folder, eval_path=str(folder)), None).heldout.num_images == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 5}, r"data\.num_images=5, but .*holds 3 images: set --config\.data\.num_images=3"),
        (
            {"model": {"num_classes": 3}},
            r"model\.num_classes=3, but .*was made with 2: set --config\.model\.num_classes=2",
        ),
        ({"model": {"codebook_size": 20}}, r"model\.codebook_size=20.*17"),
        ({"model": {"grid_side": 4}, "image_size": 4}, r"model\.grid_side=4.*8"),
    ],
)
def test_a_config_that_does_not_match_the_data_is_refused_with_both_values(small_config, folder, changes, message):
    with pytest.raises(UserError, match=message):
        open_datasets(config_for(small_config, folder, **changes), None)


def test_empty_folder(small_config, tmp_path):
    with pytest.raises(UserError, match="no token records"):
        open_datasets(config_for(small_config, tmp_path), None)


def test_the_tokenizer_must_be_the_one_that_made_the_records(small_config, folder):
    config = config_for(small_config, folder, tokenizer="vqgan.bin")
    tokenizer = DigitsTokenizer()
    assert open_datasets(config, tokenizer).train.num_images == 3
    tokenizer.fingerprint = "vqgan-0123"
    with pytest.raises(UserError, match=r"tokenizer=vqgan\.bin is vqgan-0123, but .* was made with digits"):
        open_datasets(config, tokenizer)
    description = folder / "dataset.json"
    description.write_text(description.read_text().replace('"tokenizer": "digits"', '"tokenizer": "unknown"'))
    assert open_datasets(config, tokenizer).train.num_images == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer": "vqgan-0123"},
            "made with the tokenizer vqgan-0123, but the training records with digits: use one",
        ),
        (
            {"class_names": ["b", "a"]},
            "has the class 'b' as label 0, but in the training records it is label 1:",
        ),
        (
            {"class_names": ["b", "c"]},
            "has the class 'b' as label 0, but in the training records it is label 1:",
        ),
        ({"class_names": ["a"]}, "has 1 classes, but the training records have 2: tokenize the held-out images with"),
    ],
)
def test_held_out_records_must_have_the_codes_and_labels_of_the_training_records(
    small_config, folder, tmp_path_factory, changes, message
):
    heldout = tmp_path_factory.mktemp("heldout")
    shutil.copytree(folder, heldout, dirs_exist_ok=True)
    fields = json.loads((heldout / "dataset.json").read_text())
    (heldout / "dataset.json").write_text(json.dumps(fields | changes))
    with pytest.raises(UserError, match=message):
        open_datasets(config_for(small_config, folder, eval_path=str(heldout)), None)


@pytest.fixture
def glyph_config(small_config, vqgan_file, tmp_path):
    """A function that makes a config whose tokens are glyphs of 8 x 8 pixels, encoded by a tiny VQGAN."""

    def make(model=(), **data):
        model = {"grid_side": 4, "codebook_size": 24} | dict(model)
        data = {"name": "glyphs", "tokenizer": str(vqgan_file), "num_images": 30, "image_size": 8} | data
        return small_config(data={"downsampling": 2, "path": str(tmp_path)} | data, model=model)

    return make


def test_glyphs_are_tokenized_once(glyph_config, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "NUM_HELDOUT", 20)
    config = glyph_config()
    tokenizer = load_tokenizer(config)
    opened = open_datasets(config, tokenizer)
    for records, split in ((opened.train, "train"), (opened.heldout, "heldout")):
        batch = records.read(np.arange(records.num_images))
        images, labels = glyph_images(split, np.arange(records.num_images))
        squares = np.stack([center_square(Image.fromarray(image), 8) for image in images])
        np.testing.assert_array_equal(batch["tokens"], tokenizer.encode(squares))
        np.testing.assert_array_equal(batch["label"], labels)
    assert (opened.train.num_images, opened.heldout.num_images) == (30, 20)
    monkeypatch.setattr(tokenizer, "encode", None)
    assert open_datasets(config, tokenizer).train.num_images == 30
    # The held-out glyphs do not need the training glyphs.
    assert open_heldout(glyph_config(num_images=16), tokenizer).num_images == 20
    assert len(list(tmp_path.glob("*/dataset.json"))) == 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": {"grid_side": 32}, "image_size": 64}, "image_size=64 would enlarge the glyphs.*grid_side=16"),
    ({"model": {"num_classes": 12}}, "config.model: num_classes=12: the glyphs have 10 classes"),
    ({"tokenizer": "none"}, "config.data.tokenizer=none: config.data.name=glyphs needs the tokenizer"),
])  # fmt: skip
def test_glyphs_that_do_not_fit_the_config(glyph_config, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        config = glyph_config(**changes)
        open_datasets(config, load_tokenizer(config))
    assert not list(tmp_path.iterdir())
