import numpy as np
import pytest
from PIL import Image

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.records import SyntheticRecords
from rar_jax.data.sources import ClassFolders
from rar_jax.data.token_batches import evenly_spaced, image_batches, record_batches
from rar_jax.errors import UserError


def test_places_are_evenly_spaced():
    np.testing.assert_array_equal(evenly_spaced(3, 9), [0, 4, 8])
    np.testing.assert_array_equal(evenly_spaced(9, 3), [0, 1, 2])


def test_records_are_read_batch_by_batch():
    records, places = SyntheticRecords(20, 0, 4, 9, 5), np.array([1, 4, 5, 19, 2])
    batches = list(record_batches(records, places, 2))
    assert [len(batch["label"]) for batch in batches] == [2, 2, 1]
    for name, expected in records.read(places).items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), expected)


def test_images_are_encoded_batch_by_batch_up_to_a_damaged_one(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "ab"[i // 4]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "b" / "9.png").write_bytes(b"hello")
    tokenizer = DigitsTokenizer()
    batches = image_batches(ClassFolders(tmp_path), np.array([1, 3, 4, 5, 6]), tokenizer, 2)
    for places, labels in (([1, 3], [0, 0]), ([4, 5], [1, 1])):
        batch = next(batches)
        np.testing.assert_array_equal(batch["tokens"], tokenizer.encode(pixels[places]))
        np.testing.assert_array_equal(batch["label"], labels)
    with pytest.raises(UserError, match=r"9\.png: it is not an image"):
        next(batches)
