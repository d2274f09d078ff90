import multiprocessing
import os
import signal

import numpy as np
import pytest
from absl import flags
from PIL import Image
from running import own_flags

from rar_jax.data.image_loader import ArrayPictures, Crops, ImageBatches, SourcePictures, TrainImages, heldout_batches
from rar_jax.data.sources import ImageFolder
from rar_jax.errors import UserError

CROPS = Crops(8, 0.5, True)


def numbered(count, side=8):
    """Pictures of one grey level each: the picture's number."""
    return ArrayPictures(np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3)))


def batches(pictures, rows=range(4), workers=0, num_batches=9):
    return ImageBatches(TrainImages(pictures, CROPS, 4, num_batches, 0, np.array(rows)), workers)


def taken(iterator, count):
    return np.stack([next(iterator)["image"] for _ in range(count)])


def test_an_epoch_has_every_image_once():
    seen = taken(batches(numbered(14)), 9)[:, :, 0, 0, 0].reshape(3, 12)
    assert [len(set(epoch)) for epoch in seen.tolist()] == [12, 12, 12]
    assert not np.array_equal(seen[0], seen[1])


def noisy():
    return ArrayPictures(np.random.default_rng(0).integers(0, 256, (14, 12, 10, 3), np.uint8))


def test_rows_are_those_of_the_global_batch_and_crops_differ_between_epochs():
    whole, part = taken(batches(noisy()), 6), taken(batches(noisy(), rows=(1, 3)), 6)
    np.testing.assert_array_equal(part, whole[:, [1, 3]])
    constant = ArrayPictures(np.repeat(noisy()._images[:1], 4, axis=0))
    cut = taken(batches(constant), 9)
    assert len(np.unique(cut.reshape(36, -1), axis=0)) > 30


@pytest.mark.parametrize("workers", [0, 1])
def test_a_position_is_the_same_for_any_number_of_workers(workers, tmp_path):
    for i, image in enumerate(noisy()._images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    pictures = SourcePictures(ImageFolder(tmp_path))
    expected = taken(batches(pictures), 9)
    before = batches(pictures)
    taken(before, 4)
    again = batches(pictures, workers=workers)
    # Grain's workers read absl's flags.
    with own_flags():
        flags.FLAGS.mark_as_parsed()
        again.set_state(before.get_state())
        np.testing.assert_array_equal(taken(again, 1), expected[4:5])
        # A preempted job's signals reach the workers too, which must serve the batches until the run stops.
        children = multiprocessing.active_children()
        assert len(children) == workers
        for child in children:
            os.kill(child.pid, signal.SIGTERM)
            os.kill(child.pid, signal.SIGINT)
            child.join(0.3)
            assert child.is_alive()
        np.testing.assert_array_equal(taken(again, 3), expected[5:8])
        last = next(again)["image"]
        np.testing.assert_array_equal(last, expected[8])
        # An array in Grain's shared memory would be reported as leaked if it lived to the end of the process.
        assert type(last) is np.ndarray
        assert again.get_state() == {"next_index": 9, "num_images": len(pictures)} and next(again, None) is None
    fewer = batches(ArrayPictures(noisy()._images[:-1]))
    with pytest.raises(UserError, match=r"the run has \d+ training images, and config\.data\.images now has \d+"):
        fewer.set_state(before.get_state())


def test_an_image_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(
        UserError, match=r"broken\.png: it is not an image; repair it, or put another image in its place"
    ):
        SourcePictures(ImageFolder(tmp_path))[0]


def test_heldout_images_are_drawn_once_each():
    pictures = numbered(11)
    first = [batch["image"][:, 0, 0, 0] for batch in heldout_batches(pictures, 8, 4, 10, np.arange(4))]
    again = [batch["image"][:, 0, 0, 0] for batch in heldout_batches(pictures, 8, 4, 10, np.arange(4))]
    np.testing.assert_array_equal(first, again)
    numbers = np.concatenate(first)
    assert len(numbers) == 12 and len(set(numbers[:10].tolist())) == 10 and set(numbers[10:]) == {numbers[0]}
