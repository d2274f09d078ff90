import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from rar_jax.generate import load, show


@pytest.fixture(scope="module")
def generator(golden, vqgan_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("rar") / "rar.safetensors"
    save_file(golden.tensors("params/"), path)
    return load(path, tokenizer=str(vqgan_file))


def test_images_of_classes_by_name_and_by_index(generator):
    named = dataclasses.replace(generator, class_names=("tench", "otter", "macaw", "a", "b", "c", "d"))
    images = generator.generate([1, 1, 2], seed=3, guidance_scale=2.0)
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(named.generate(["otter", "1", "Macaw"], seed=3, guidance_scale=2.0), images)
    assert (generator.generate([1, 1, 2], seed=4, guidance_scale=2.0) != images).any()
    assert show(images, columns=2).size == (2 * 64 + 3 * 2, 2 * 64 + 3 * 2)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (["otter"], {}, "class 'otter': the names of this model's classes are not known; give its index"),
        ([7], {}, r"class 7 is not in 0\.\.6"),
        ([], {}, "at least one class"),
        ([0], {"temprature": 1.0}, "there is no option 'temprature'"),
        ([0], {"batch_size": 0}, "batch size 0 must be at least 1"),
    ],
)
def test_mistakes(generator, classes, options, message):
    with pytest.raises(ValueError, match=message):
        generator.generate(classes, **options)
