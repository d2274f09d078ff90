import io

import numpy as np
from PIL import Image

from rar_jax.demo import pictures


def test_an_address_holds_the_image():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    data = pictures.read_data_uri(pictures.data_uri(image))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    assert pictures.read_data_uri("data:image/png;base64,*") == b""


def test_captions_are_text():
    page = pictures.figures(np.zeros((1, 2, 2, 3), np.uint8), ["<b> & 'x'"], [("fill", "Fill")])
    assert "<b>" not in page and "&lt;b&gt; &amp; &#x27;x&#x27;" in page
    assert "<script" not in pictures.status("<script>") + pictures.recipe("<script>", "<script>")


def test_the_map_shows_what_is_known():
    page = pictures.order_map(np.array([3, 1, 0, 2]), np.array([False, True, False, True]))
    assert page.count("<rect") == 4 and page.count('class="unknown"') == 2
    assert 'aria-label="Order of the first image: 2 of 4 tokens are known"' in page


def test_the_heat_map_is_brightest_where_surprise_is_largest():
    surprise = np.array([0.1, 0.2, 0.3, 4.0])
    page = pictures.heat_map(np.zeros((8, 8, 3), np.uint8), surprise)
    data = pictures.read_data_uri(page.partition('src="')[2].partition('"')[0])
    drawn = np.asarray(Image.open(io.BytesIO(data)), int).sum(axis=-1).reshape(2, 16, 2, 16).mean(axis=(1, 3))
    assert drawn.argmax() == 3 and drawn[0, 0] < drawn[0, 1] < drawn[1, 0]
    assert "from 0.1 nats (dark) to 4.0 nats (bright)" in page
