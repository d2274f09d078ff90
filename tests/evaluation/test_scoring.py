import numpy as np
import pytest
from conftest import DATA

from rar_jax.data.digits import digits_split
from rar_jax.errors import UserError
from rar_jax.evaluation.evaluate import evaluate_samples
from rar_jax.evaluation.features import Features, InceptionExtractor, PixelExtractor
from rar_jax.evaluation.image_sets import open_images
from rar_jax.evaluation.neighbours import precision_recall
from rar_jax.evaluation.references import write_statistics
from rar_jax.evaluation.sample_scores import ReferenceScorer
from rar_jax.evaluation.scoring import (
    Accumulator,
    Reference,
    Summary,
    sample_warnings,
    score,
    split_warnings,
    spread_places,
    summarise,
)
from rar_jax.evaluation.statistics import Gaussian, frechet_distance, gaussian, inception_score

PIXELS = PixelExtractor()


class Inception(InceptionExtractor):
    """Stands in for the network. Its name decides which scores are computed."""

    def __init__(self):
        pass


def scores_of(folder, samples, reference):
    """Scores arrays of images by their pixels."""
    for name, images in (("samples", samples), ("reference", reference)):
        np.savez(folder / f"{name}.npz", images)
    found = Reference(folder / "reference.npz", None)
    found.prepare(PIXELS)
    return score(summarise(open_images(folder / "samples.npz"), PIXELS, "samples", len(samples)), found, PIXELS)


def test_scores_equal_those_of_adm(tmp_path):
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
    # Logits that are all equal.
    assert scores["inception_score"] == pytest.approx(1)
    # ADM rounds distances to float16.
    assert scores["precision"] == pytest.approx(adm["precision"], abs=0.005)
    assert scores["recall"] == pytest.approx(adm["recall"], abs=0.005)
    assert warnings == ["no sfid: the reference has no statistics for it"]
    assert reference.kind == "validation images"


def test_each_score_has_its_own_features(tmp_path):
    """The pool features differ in the mean (3^2), the spatial ones in the variance of each (3 * (3 - 1)^2)."""
    stored = {"pool": Gaussian(np.zeros(2), np.eye(2)), "spatial": Gaussian(np.zeros(3), np.eye(3))}
    write_statistics(tmp_path / "a.npz", stored)
    gaussians = {"pool": Gaussian(np.array([0, 3]), np.eye(2)), "spatial": Gaussian(np.zeros(3), 9 * np.eye(3))}
    # Each of five samples is surely of another class.
    samples = Summary(gaussians, np.zeros((0, 2)), 100 * np.eye(5), np.zeros((0, 8, 8, 3)), np.zeros((0, 2)))
    scores, _ = score(samples, Reference(tmp_path / "a.npz", None), Inception())
    assert scores == pytest.approx({"fid": 9, "sfid": 12, "inception_score": 5})


class SmallInception(Inception):
    """Stands in for the network with features of few numbers."""

    fingerprint, batch_size = "inception-small", 7

    def extract(self, images):
        flat = images.reshape(len(images), -1) / np.float32(64)
        return Features(flat[:, :6], flat[:, 6:10], flat[:, 10:15])


def test_images_are_scored_by_their_features(tmp_path):
    rng = np.random.default_rng(0)
    samples, real = (rng.integers(high, size=(60, 4, 4, 3), dtype=np.uint8) for high in (200, 256))
    for name, images in (("samples", samples), ("real", real)):
        np.savez(tmp_path / f"{name}.npz", images)
    extractor = SmallInception()
    ours, theirs = extractor.extract(samples), extractor.extract(real)
    fid, inception = frechet_distance(ours.pool, theirs.pool), inception_score(ours.logits)
    precision, recall = precision_recall(theirs.pool, ours.pool)
    report = evaluate_samples(
        open_images(tmp_path / "samples.npz"), Reference(tmp_path / "real.npz", None), extractor, tmp_path / "out"
    )
    spatial = frechet_distance(ours.spatial, theirs.spatial)
    expected = {"fid": fid, "sfid": spatial, "inception_score": inception, "precision": precision, "recall": recall}
    assert report.scores == pytest.approx(expected)
    # The scores during training.
    scorer = ReferenceScorer(extractor, Reference(tmp_path / "real.npz", None), 4)
    scorer.prepare()
    scores = scorer.score(iter(np.split(samples, 4)), np.zeros(60, int))
    assert scores == pytest.approx({"fid": fid, "inception_score": inception})


def test_a_set_matches_itself_and_distances_are_symmetric(tmp_path):
    train, heldout = (digits_split(split)[0] for split in ("train", "heldout"))
    scores, _ = scores_of(tmp_path, train, train)
    trace = np.trace(gaussian(PIXELS.extract(train).pool).sigma)
    assert abs(scores["frechet_pixels"]) < 1e-6 * trace and scores["precision"] == scores["recall"] == 1
    there, warnings = scores_of(tmp_path, heldout, train)
    back, _ = scores_of(tmp_path, train, heldout)
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
    scores, warnings = scores_of(tmp_path, train[:4], train[4:8])
    expected = frechet_distance(*(PIXELS.extract(train[part]).pool for part in (slice(4), slice(4, 8))))
    assert scores["frechet_pixels"] == pytest.approx(expected, rel=1e-9)
    assert "precision" in scores and "the samples is singular (rank 3 of 64)" in warnings[0]
    constant = np.full((3, 8, 8, 3), 255, np.uint8)
    scores, warnings = scores_of(tmp_path, constant, constant)
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
    # If the file also has images, precision and recall use 10,000 of them.
    with np.load(tmp_path / "a.npz") as file:
        np.savez(tmp_path / "VIRTUAL_imagenet8.npz", arr_0=np.tile(train, (8, 1, 1, 1)), **file)
    both = Reference(tmp_path / "VIRTUAL_imagenet8.npz", None)
    both.prepare(PIXELS)
    assert len(both.places) == 10_000
    np.testing.assert_array_equal(both.pool, np.tile(features, (8, 1))[both.places])
    np.testing.assert_array_equal(both.gaussians["pool"].mu, stored.gaussians["pool"].mu)
    assert both.kind == "training images" and "stored in the file" in both.statistics
    with pytest.raises(UserError, match="has statistics of 64 features, but --features=pixels gives 16"):
        both.check(PIXELS, (4, 4))


@pytest.mark.parametrize("labels", [np.repeat(np.arange(1000), 50), np.arange(50_000) % 1000])
def test_the_images_for_precision_and_recall_include_all_classes(labels):
    """The classes can be sorted, as in folders, or interleaved, as in samples of this project."""
    places = spread_places(50_000, 10_000)
    assert len(places) == 10_000 and (np.diff(places) > 0).all() and places[-1] < 50_000
    counts = np.bincount(labels[places], minlength=1000)
    assert counts.min() >= 1 and counts.max() <= 30


@pytest.mark.parametrize("total", [1, 7, 10_000])
def test_all_images_of_a_small_set_are_used(total):
    """ADM's reference batches have 10,000 images."""
    np.testing.assert_array_equal(spread_places(total, 10_000), np.arange(total))


def test_only_what_was_requested_is_kept():
    """Features of 50,000 images are 0.4 GB, and their logits 0.2 GB."""
    features = Features(np.ones((8, 2048), np.float32), np.ones((8, 2023), np.float32), np.ones((8, 1008), np.float32))
    accumulator = Accumulator(80, keep=10, show=1)
    for _ in range(10):
        accumulator.add(np.zeros((8, 2, 2, 3), np.uint8), features)
    summary = accumulator.summary()
    assert summary.pool.shape == (10, 2048) and summary.logits is None
    # The kept features are copies, not views of whole batches.
    assert not any(np.shares_memory(kept, features.pool) for kept in accumulator._pool + accumulator._shown_pool)
    assert all(kept.base is None for kept in accumulator._pool + accumulator._shown_pool)


def test_spatial_statistics_of_another_size_are_refused(tmp_path):
    arrays = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(5), "sigma_s": np.eye(5)}
    np.savez(tmp_path / "a.npz", **arrays)
    reference = Reference(tmp_path / "a.npz", None)
    extractor = InceptionExtractor.__new__(InceptionExtractor)
    with pytest.raises(UserError, match=r"mu_s and sigma_s of 5 features, but sFID needs 2023: make the file again"):
        reference.check(extractor, (256, 256))


def test_few_or_unbalanced_samples_cause_warnings():
    few, unbalanced = sample_warnings(5, np.array([0, 0, 7, 7, 7]))
    assert few.startswith("5 samples, fewer than the 50,000 in papers")
    assert unbalanced == "the 2 classes have from 2 to 3 samples each"
    assert sample_warnings(50_000, np.arange(50_000) % 10) == sample_warnings(50_000, None) == []


def test_samples_sorted_by_class_cause_a_warning_about_the_inception_score():
    interleaved = np.arange(20_000) % 100
    assert split_warnings(interleaved) == split_warnings(np.sort(interleaved)[:4_999]) == []
    assert split_warnings(np.random.default_rng(0).permutation(interleaved)) == []
    (warning,) = split_warnings(np.sort(interleaved))
    assert warning.startswith(
        "a split of 5,000 consecutive samples has only 25 of the 100 classes, so the Inception Score"
    )
