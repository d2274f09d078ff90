import numpy as np

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.generation.animation import appearing


def test_digits_appear_in_their_order():
    """With the digits a pixel is a token, and each frame adds exactly the next pixel of the order."""
    random = np.random.default_rng(0)
    tokens = random.integers(17, size=(2, 64))
    orders = np.stack([random.permutation(64) for _ in range(2)])
    tokenizer = DigitsTokenizer()
    frames = appearing(tokenizer, tokens, orders, (1,) * 64)
    assert frames.shape == (65, 2, 8, 8, 3)
    whole = tokenizer.decode(tokens)
    for step, frame in enumerate(frames):
        for i in range(2):
            known = np.isin(np.arange(64), orders[i, :step]).reshape(8, 8)
            np.testing.assert_array_equal(frame[i][known], whole[i][known])
            assert (frame[i][~known] == 128).all()


def test_patches_of_a_vqgan_appear_and_end_as_the_whole_image(vqgan_file):
    """An image has 16 x 16 codes, four per frame, and the network sees beyond a patch."""
    tokenizer = open_tokenizer(str(vqgan_file), 32)
    tokens = np.random.default_rng(0).integers(24, size=(1, 256))
    frames = appearing(tokenizer, tokens, np.arange(256)[None], (1,) * 256)
    assert frames.shape == (65, 1, 32, 32, 3)
    np.testing.assert_array_equal(frames[-1], tokenizer.decode(tokens))
    # Ten frames add 40 codes: two and a half lines of patches of 2 x 2 pixels.
    there = (frames[10, 0] != 128).any(axis=-1)
    assert there[:4].mean() > 0.95 and there[4:6, :16].mean() > 0.9
    assert not there[4:, 16:].any() and not there[6:].any()
    # Far from the missing codes, a patch is as in the last frame, except for the normalisation over the whole image.
    assert np.abs(frames[60, 0, :8].astype(int) - frames[-1, 0, :8]).mean() < 12


def test_only_missing_patches_of_a_vqgan_are_grey(vqgan_file):
    tokenizer = open_tokenizer(str(vqgan_file), 8)
    tokens = np.full((1, 16), 3)
    frames = appearing(tokenizer, tokens, np.arange(16)[None, ::-1], (1,) * 16)
    # All codes are equal, so the code that replaces the missing ones is right, and each patch is right from the start.
    for step, frame in enumerate(frames):
        known = (np.arange(16) >= 16 - step).reshape(4, 4).repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(frame[0][known], frames[-1, 0][known])


def test_a_group_appears_together():
    tokens, orders = np.full((1, 64), 9), np.random.default_rng(1).permutation(64)[None]
    frames = appearing(DigitsTokenizer(), tokens, orders, (4, 20, 40))
    assert [int((frame != 128).any(axis=-1).sum()) for frame in frames] == [0, 4, 24, 64]
