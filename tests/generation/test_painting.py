import numpy as np

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.generation.painting import Painting, decode_known

TOKENS = np.arange(128).reshape(2, 64) % 17
ORDERS = np.stack([np.arange(64), np.arange(64)[::-1]])


def test_what_is_not_known_is_grey():
    known = np.stack([np.arange(64) < 3, np.arange(64) >= 62])
    images = decode_known(DigitsTokenizer(), TOKENS, known, ORDERS).reshape(2, 64, 3)
    assert (images[~known] == 128).all()
    np.testing.assert_array_equal(images[known], DigitsTokenizer().decode(TOKENS).reshape(2, 64, 3)[known])
    assert (decode_known(DigitsTokenizer(), TOKENS, np.zeros((2, 64), bool), ORDERS) == 128).all()


def test_a_painting_pastes():
    known = np.ones((2, 64), bool)
    known[1, 5] = False
    red, masks = np.full((1, 8, 8, 3), [255, 0, 0], np.uint8), np.zeros((1, 8, 8), bool)
    masks[0, :4] = True
    first = Painting(TOKENS[:1], known[:1], ORDERS[:1], DigitsTokenizer(), (red, masks))
    assert first.done and not Painting(TOKENS, known, ORDERS, DigitsTokenizer(), None).done
    images = first.images()
    np.testing.assert_array_equal(images[0, :4], DigitsTokenizer().decode(TOKENS)[0, :4])
    np.testing.assert_array_equal(images[0, 4:], red[0, 4:])


def test_only_missing_patches_of_a_vqgan_are_grey(vqgan_file):
    """All codes are equal, so that the code that stands for the missing ones is right, and each patch too."""
    tokenizer, tokens = open_tokenizer(str(vqgan_file), 8), np.full((1, 16), 3)
    whole = tokenizer.decode(tokens)[0]
    for count in range(17):
        known = np.arange(16) >= 16 - count
        image = decode_known(tokenizer, tokens, known[None], np.arange(16)[None, ::-1])[0]
        patches = known.reshape(4, 4).repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(image[patches], whole[patches])
        assert (image[~patches] == 128).all()
