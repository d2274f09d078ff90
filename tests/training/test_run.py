import numpy as np
import pytest

from rar_jax.images.files import write_png
from rar_jax.training.run import prepare


def test_a_tokenizer_must_fit_the_model(small_config, tmp_path):
    config = small_config(data={"name": "synthetic", "image_size": 4}, model={"grid_side": 4})
    with pytest.raises(ValueError, match=r"config\.data\.tokenizer=digits: image size 4 must be 8"):
        prepare(config, tmp_path)


def test_a_run_folder_below_a_file(small_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        prepare(small_config(), tmp_path / "file" / "run")


def test_a_reference_that_cannot_be_used_is_found_before_the_first_step(small_config, inception_file, tmp_path):
    write_png(tmp_path / "reference" / "a.png", np.zeros((9, 20, 3), np.uint8))
    (tmp_path / "reference" / "b.png").write_bytes(b"not a picture")
    options = {"score_every": 5, "inception": str(inception_file), "reference": str(tmp_path / "reference")}
    with pytest.raises(ValueError, match=r"config\.eval\.reference: .*b\.png: it is not an image"):
        prepare(small_config(eval=options), tmp_path / "run")
