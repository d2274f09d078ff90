import numpy as np
import pytest

from rar_jax.data.digits import DigitsTokenizer
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError
from rar_jax.generation.editing import token_masks


def test_a_token_is_masked_if_any_of_its_pixels_is(vqgan_file):
    tokenizer = open_tokenizer(str(vqgan_file), 8)
    mask = np.zeros((8, 8), bool)
    mask[3, 5] = True
    covered = token_masks(mask, tokenizer, 2, margin=0)
    assert covered.shape == (2, 16) and [*np.flatnonzero(covered[0])] == [6] and (covered[0] == covered[1]).all()
    # Token 6 is in row 1, column 2 of the 4 x 4 grid.
    assert [*np.flatnonzero(token_masks(mask, tokenizer, 1, margin=1)[0])] == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert token_masks(mask, tokenizer, 1, margin=4).all()


@pytest.mark.parametrize("shape", [(8, 7), (3, 8, 8), (64,), (2, 8, 8, 1)])
def test_masks_of_another_size_are_refused(shape):
    with pytest.raises(UserError, match="must have the shape"):
        token_masks(np.zeros(shape, bool), DigitsTokenizer(), 2, 0)
