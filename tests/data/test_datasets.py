import numpy as np
import pytest

from rar_jax.data.datasets import open_datasets
from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.records import write_records


def test_digits(small_config):
    datasets = open_datasets(small_config(), DigitsTokenizer())
    assert datasets.train.num_images == 1437 and datasets.heldout.num_images == 360


@pytest.fixture
def folder(tmp_path):
    images = [(np.zeros(64, int), label) for label in (0, 1, 1)]
    write_records(
        tmp_path, images, grid_side=8, codebook_size=17, class_names=("a", "b"), tokenizer="digits", source="a test"
    )
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
    with pytest.raises(ValueError, match=message):
        open_datasets(config_for(small_config, folder, **changes), None)


def test_empty_folder(small_config, tmp_path):
    with pytest.raises(ValueError, match="no token records"):
        open_datasets(config_for(small_config, tmp_path), None)


def test_the_tokenizer_must_be_the_one_that_made_the_records(small_config, folder):
    config = config_for(small_config, folder, tokenizer="vqgan.bin")
    tokenizer = DigitsTokenizer()
    assert open_datasets(config, tokenizer).train.num_images == 3
    tokenizer.fingerprint = "vqgan-0123"
    with pytest.raises(ValueError, match=r"tokenizer=vqgan\.bin is vqgan-0123, but .* was made with digits"):
        open_datasets(config, tokenizer)
    description = folder / "dataset.json"
    description.write_text(description.read_text().replace('"tokenizer": "digits"', '"tokenizer": "unknown"'))
    assert open_datasets(config, tokenizer).train.num_images == 3
