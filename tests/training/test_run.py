import dataclasses

import numpy as np
import pytest

from rar_jax.data.glyphs import Glyphs
from rar_jax.data.tokenization import tokenize_images
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError
from rar_jax.images.files import write_png
from rar_jax.training.run import prepare


def test_a_tokenizer_must_fit_the_model(small_config, tmp_path):
    config = small_config(data={"name": "synthetic", "image_size": 4}, model={"grid_side": 4})
    with pytest.raises(UserError, match=r"config\.data\.tokenizer=digits: image size 4 must be 8"):
        prepare(config, tmp_path)


def test_attention_without_a_kernel_is_refused(small_config, tmp_path):
    with pytest.raises(UserError, match=r"^config\.train\.attention='pallas' has kernels for NVIDIA GPUs only"):
        prepare(small_config(train={"attention": "pallas"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_below_a_file(small_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        prepare(small_config(), tmp_path / "file" / "run")


def test_an_unusable_reference_is_refused_before_the_first_step(small_config, inception_file, tmp_path):
    write_png(tmp_path / "reference" / "a.png", np.zeros((9, 20, 3), np.uint8))
    (tmp_path / "reference" / "b.png").write_bytes(b"not a picture")
    options = {"score_every": 5, "inception": str(inception_file), "reference": str(tmp_path / "reference")}
    config = small_config(eval=options)
    with pytest.raises(UserError, match=r"config\.eval\.reference: .*b\.png: it is not an image"):
        prepare(config, tmp_path / "run")
    # The reference takes minutes, so that other mistakes are found before.
    with pytest.raises(UserError, match=r"config\.init_from=nothing\.bin: no weights in"):
        prepare(dataclasses.replace(config, init_from="nothing.bin"), tmp_path / "run")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("heldout/los", r"is not measured in this run: it must be heldout/target_loss, .*svm_accuracy_unguided$"),
        ("score/fid_guided", "is not measured in this run"),
        # This value is measured at the last step alone.
        ("report/svm_accuracy_samples", "is not measured in this run"),
    ],
)
def test_the_best_checkpoint_needs_a_measure(small_config, tmp_path, metric, message):
    config = small_config(checkpoint={"best_metric": metric}, eval={"score_every": 5, "report_samples": 20})
    with pytest.raises(UserError, match=rf"config\.checkpoint\.best_metric='{metric}' {message}"):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_are_scored_as_glyphs_only_if_the_records_are_of_glyphs(small_config, vqgan_file, tmp_path):
    tokenizer = open_tokenizer(str(vqgan_file), 32)
    folders = {split: tmp_path / split for split in ("train", "heldout")}
    for split, folder in folders.items():
        tokenize_images(Glyphs(split, 30), tokenizer, folder, image_size=32, num_workers=1)
    data = {"name": "records", "num_images": 30, "image_size": 32, "downsampling": tokenizer.downsampling}
    data |= {"tokenizer": str(vqgan_file), "path": str(folders["train"]), "eval_path": str(folders["heldout"])}
    model = {"grid_side": tokenizer.grid_side, "codebook_size": tokenizer.codebook_size}
    config = small_config(data=data, model=model, eval={"report_samples": 20})
    run = prepare(config, tmp_path / "run")
    run.close()
    assert "report/glyph_accuracy_samples" in {measure.name for measure in run.evaluators[-1].measures}
    swapped = data | {"eval_path": str(folders["train"])}
    config = small_config(data=swapped, model=model, eval={"report_samples": 20})
    with pytest.raises(UserError, match=r"eval_path=.* holds glyphs, train, 10 classes, not glyphs, heldout"):
        prepare(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["heldout"]),
        ({"samples_per_class": 1, "score_every": 5}, ["heldout", "samples", "scores"]),
        ({"report_samples": 20}, ["heldout", "report"]),
    ],
)
def test_a_run_has_the_evaluators_that_its_config_asks_for(small_config, tmp_path, options, expected):
    run = prepare(small_config(eval=options), tmp_path)
    run.close()
    assert [each.name for each in run.evaluators] == expected
