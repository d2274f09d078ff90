import numpy as np
import pytest
from conftest import DATA

from rar_jax.data.digits import digits_split
from rar_jax.evaluation.features import Features, InceptionExtractor, PixelExtractor
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.references import write_statistics
from rar_jax.evaluation.scoring import (
    Accumulator,
    Reference,
    Summary,
    score,
    split_warnings,
    spread_places,
    summarise,
    warnings_of,
)
from rar_jax.evaluation.statistics import frechet_distance, gaussian

PIXELS = PixelExtractor()


class Inception:
    """Stands in for the network: its name is what tells which scores there are."""

    name = "inception"


def against(folder, samples, reference):
    """Scores arrays of images by their pixels."""
    for name, images in (("samples", samples), ("reference", reference)):
        np.savez(folder / f"{name}.npz", images)
    found = Reference(folder / "reference.npz", None)
    found.prepare(PIXELS)
    return score(summarise(open_images(folder / "samples.npz"), PIXELS, "samples", len(samples)), found, PIXELS)


def test_scores_are_those_of_adm(tmp_path):
    adm = np.load(DATA / "adm_metrics.npz")
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8))
    reference = Reference(tmp_path / "a.npz", "validation")
    reference.gaussians = {"pool": gaussian(adm["reference_features"])}
    reference.pool = adm["reference_features"]
    features = adm["sample_features"]
    samples = Summary({"pool": gaussian(features)}, features, np.zeros((700, 5)), features[:0], features[:0])
    scores, warnings = score(samples, reference, Inception())
    assert scores.keys() == {"fid", "inception_score", "precision", "recall"}
    assert scores["fid"] == pytest.approx(adm["fid"], rel=1e-5)
    # ADM rounds distances to float16.
    assert scores["precision"] == pytest.approx(adm["precision"], abs=0.005)
    assert scores["recall"] == pytest.approx(adm["recall"], abs=0.005)
    assert warnings == ["no sfid: the reference has no such statistics"]
    assert reference.kind == "validation images"


def test_a_set_with_itself_and_symmetry(tmp_path):
    train, heldout = (digits_split(split)[0] for split in ("train", "heldout"))
    scores, _ = against(tmp_path, train, train)
    trace = np.trace(gaussian(PIXELS.extract(train).pool).sigma)
    assert abs(scores["frechet_pixels"]) < 1e-6 * trace and scores["precision"] == scores["recall"] == 1
    there, warnings = against(tmp_path, heldout, train)
    back, _ = against(tmp_path, train, heldout)
    assert there["frechet_pixels"] == pytest.approx(back["frechet_pixels"], rel=1e-9)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])
    # Some pixels of the digits are always black.
    assert ["singular" in warning for warning in warnings] == [True, True]


def test_batches_do_not_matter(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", digits_split("heldout")[0])
    images = open_images(tmp_path / "a.npz")
    whole = summarise(images, PIXELS, "a", keep=100, show=7)
    monkeypatch.setattr(PixelExtractor, "batch_size", 7)
    parts = summarise(images, PIXELS, "a", keep=100, show=7)
    np.testing.assert_allclose(parts.gaussians["pool"].sigma, whole.gaussians["pool"].sigma, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(parts.pool, whole.pool)
    np.testing.assert_array_equal(whole.pool, PIXELS.extract(digits_split("heldout")[0][spread_places(360, 100)]).pool)
    np.testing.assert_array_equal(parts.shown, digits_split("heldout")[0][[0, 60, 120, 180, 239, 299, 359]])
    np.testing.assert_array_equal(PIXELS.extract(parts.shown).pool, parts.shown_pool)


def test_four_images_and_constant_ones(tmp_path):
    train = digits_split("train")[0]
    scores, warnings = against(tmp_path, train[:4], train[4:8])
    expected = frechet_distance(*(PIXELS.extract(train[part]).pool for part in (slice(4), slice(4, 8))))
    assert scores["frechet_pixels"] == pytest.approx(expected, rel=1e-9)
    assert "precision" in scores and "the samples is singular (rank 3 of 64)" in warnings[0]
    constant = np.full((3, 8, 8, 3), 255, np.uint8)
    scores, warnings = against(tmp_path, constant, constant)
    assert scores == {"frechet_pixels": 0}
    assert "rank 0 of 64" in warnings[0] and warnings[2].startswith("no precision and recall: they need more than 3")


def test_stored_statistics_are_used_as_they_are(tmp_path):
    train = digits_split("train")[0]
    features = PIXELS.extract(train).pool
    write_statistics(tmp_path / "a.npz", {"pool": gaussian(features + 1)})
    stored = Reference(tmp_path / "a.npz", None)
    stored.check(PIXELS, (8, 8))
    stored.prepare(PIXELS)
    np.savez(tmp_path / "samples.npz", train)
    samples = summarise(open_images(tmp_path / "samples.npz"), PIXELS, "samples")
    scores, warnings = score(samples, stored, PIXELS)
    assert scores == {"frechet_pixels": pytest.approx(64, rel=1e-4)}
    assert warnings[-1] == "no precision and recall: the reference has no images"
    # With images besides, precision and recall are of 10,000 of these.
    with np.load(tmp_path / "a.npz") as file:
        np.savez(tmp_path / "VIRTUAL_imagenet8.npz", arr_0=np.tile(train, (8, 1, 1, 1)), **file)
    both = Reference(tmp_path / "VIRTUAL_imagenet8.npz", None)
    both.prepare(PIXELS)
    assert len(both.places) == 10_000
    np.testing.assert_array_equal(both.pool, np.tile(features, (8, 1))[both.places])
    np.testing.assert_array_equal(both.gaussians["pool"].mu, stored.gaussians["pool"].mu)
    assert both.kind == "training images" and "as stored" in both.statistics
    with pytest.raises(ValueError, match="has statistics of 64 features, and those of --features=pixels are 16"):
        both.check(PIXELS, (4, 4))


@pytest.mark.parametrize("labels", [np.repeat(np.arange(1000), 50), np.arange(50_000) % 1000])
def test_the_images_for_precision_and_recall_are_of_all_classes(labels):
    """Whether these are sorted, as in folders, or in turn, as in samples of this project."""
    places = spread_places(50_000, 10_000)
    assert len(places) == 10_000 and (np.diff(places) > 0).all() and places[-1] < 50_000
    counts = np.bincount(labels[places], minlength=1000)
    assert counts.min() >= 1 and counts.max() <= 30


@pytest.mark.parametrize("total", [1, 7, 10_000])
def test_of_no_more_images_all_are_taken(total):
    """As of ADM's reference batches."""
    np.testing.assert_array_equal(spread_places(total, 10_000), np.arange(total))


def test_what_is_not_asked_for_is_not_kept():
    """Features of 50,000 images are 0.4 GB, and their logits 0.2 GB."""
    features = Features(np.ones((8, 2048), np.float32), np.ones((8, 2023), np.float32), np.ones((8, 1008), np.float32))
    accumulator = Accumulator(80, keep=10, show=1)
    for _ in range(10):
        accumulator.add(np.zeros((8, 2, 2, 3), np.uint8), features)
    summary = accumulator.summary()
    assert summary.pool.shape == (10, 2048) and summary.logits is None
    # No view of the features that came.
    assert not any(np.shares_memory(kept, features.pool) for kept in accumulator._pool + accumulator._shown_pool)
    assert all(kept.base is None for kept in accumulator._pool + accumulator._shown_pool)


def test_spatial_statistics_of_another_kind_are_refused(tmp_path):
    arrays = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(5), "sigma_s": np.eye(5)}
    np.savez(tmp_path / "a.npz", **arrays)
    reference = Reference(tmp_path / "a.npz", None)
    extractor = InceptionExtractor.__new__(InceptionExtractor)
    with pytest.raises(ValueError, match=r"mu_s and sigma_s of 5 features, and those of sFID are 2023: make them"):
        reference.check(extractor, (256, 256))


def test_what_is_wrong_with_samples():
    few, unbalanced = warnings_of(5, np.array([0, 0, 7, 7, 7]))
    assert few.startswith("5 samples, fewer than the papers' 50,000")
    assert unbalanced == "the 2 classes have from 2 to 3 samples each"
    assert warnings_of(50_000, np.arange(50_000) % 10) == warnings_of(50_000, None) == []


def test_samples_sorted_by_class_are_wrong_for_the_inception_score():
    in_turn = np.arange(20_000) % 100
    assert split_warnings(in_turn) == split_warnings(np.sort(in_turn)[:4_999]) == []
    assert split_warnings(np.random.default_rng(0).permutation(in_turn)) == []
    (warning,) = split_warnings(np.sort(in_turn))
    assert warning.startswith(
        "5,000 consecutive samples are of 25 of the 100 classes: the Inception Score, a mean over"
    )
