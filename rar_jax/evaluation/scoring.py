"""Scores images against a reference, as OpenAI's ADM evaluator does, and warns if scores cannot be compared."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from rar_jax.data.token_batches import evenly_spaced
from rar_jax.errors import UserError
from rar_jax.evaluation.features import Extractor, Features, extract_all
from rar_jax.evaluation.image_sets import FolderImages, ImageSet, chosen, open_images, rows_at
from rar_jax.evaluation.neighbours import num_distances, precision_recall
from rar_jax.evaluation.references import read_statistics
from rar_jax.evaluation.statistics import SPLIT_SIZE, Gaussian, Moments, frechet
from rar_jax.progress import Progress

# As in the ADM evaluator: the neighbour that gives the radius for precision and recall, and the number of reference
# features that they use. ADM uses the first features. Here they are spread over the reference, because the first images
# of a set can belong to a few classes (`spread_places`).
NEIGHBOURS = 3
_REFERENCE_FEATURES = 10_000
# Number of samples behind the scores in papers.
PAPERS_IMAGES = 50_000
# The names of ADM's reference batches begin with this. Their statistics come from the ImageNet training set.
_ADM_REFERENCE = "VIRTUAL_imagenet"
REFERENCE_KINDS = ("training", "validation")
# Names of the Frechet distances, by extractor and kind of features. Papers call only those of Inception features FID.
FRECHET_NAMES = {
    "inception": {"pool": "fid", "spatial": "sfid"},
    "pixels": {"pool": "frechet_pixels"},
    "glyphs": {"pool": "frechet_glyphs"},
}
# Distances between reconstructions and their originals have other names, because they are not the FID of samples.
RECONSTRUCTION_NAMES = FRECHET_NAMES | {"inception": {"pool": "rfid", "spatial": "rsfid"}}


@dataclasses.dataclass
class Summary:
    """The features of a set of images, reduced to what the scores and the report need.

    Attributes:
      gaussians: the distributions of the pool features and, for Inception, of the spatial features, by kind.
      pool: float32 [n, F], the pool features that were kept.
      logits: float32 [N, classes], or None if they were not requested or the extractor has none.
      shown, shown_pool: the images kept for the report, uint8 [n, H, W, 3], and their pool features, [n, F].
    """

    gaussians: dict[str, Gaussian]
    pool: np.ndarray
    logits: np.ndarray | None
    shown: np.ndarray
    shown_pool: np.ndarray


class Accumulator:
    """Accumulates the summary of a set of images that come in batches."""

    def __init__(self, total: int, keep: int = 0, show: int = 0, logits: bool = False):
        """Chooses the images whose features are kept.

        Args:
          total: number of images in the set.
          keep: number of pool features to keep, chosen by `spread_places`.
          show: number of images to keep, evenly spaced.
          logits: whether to keep the logits, for `Extractor.score_classes`.
        """
        self._kept, self._keeps_logits = spread_places(total, keep), logits
        self._places = set(evenly_spaced(show, total).tolist())
        self._moments = {"pool": Moments(), "spatial": Moments()}
        self._pool, self._logits, self._shown, self._shown_pool = [], [], [], []

    def add(self, images: np.ndarray, features: Features) -> None:
        """Adds a batch of images, uint8 [B, H, W, 3], and their features."""
        start = self._moments["pool"].count
        for i in range(len(images)):
            if start + i in self._places:
                self._shown.append(np.array(images[i]))
                self._shown_pool.append(np.array(features.pool[i]))
        # Everything that is kept is copied, because a view would keep the features of the whole batch in memory.
        self._pool.append(features.pool[rows_at(self._kept, start, len(images))])
        self._moments["pool"].add(features.pool)
        if features.spatial is not None:
            self._moments["spatial"].add(features.spatial)
        if features.logits is not None and self._keeps_logits:
            self._logits.append(np.array(features.logits))

    def summary(self) -> Summary:
        """Returns the summary of all images that were added. Raises a `UserError` if there are fewer than two."""
        return Summary(
            gaussians={kind: moments.gaussian() for kind, moments in self._moments.items() if moments.count},
            pool=np.concatenate(self._pool),
            logits=np.concatenate(self._logits) if self._logits else None,
            shown=np.array(self._shown),
            shown_pool=np.array(self._shown_pool),
        )


def spread_places(total: int, count: int) -> np.ndarray:
    """Chooses places that represent a whole set, whether its classes are sorted or interleaved.

    The set is divided into `count` stretches of equal length, and one place is drawn from each with a fixed seed. The
    first places would miss classes of a sorted set, and every n-th place would miss classes of an interleaved one.

    Args:
      total: number of images in the set.
      count: number of places; a number above `total` chooses all places.

    Returns:
      int [n], ascending places in the set.
    """
    edges = np.arange(min(count, total) + 1) * total // max(1, min(count, total))
    drawn = np.random.default_rng(0).random(len(edges) - 1)
    return edges[:-1] + (drawn * np.diff(edges)).astype(int)


def summarise(
    images: ImageSet, extractor: Extractor, label: str, keep: int = 0, show: int = 0, logits: bool = False
) -> Summary:
    """Extracts the features of a set of images, with a progress bar, and summarises them.

    Args:
      images: the set.
      extractor: extracts the features.
      label: name of the set in the progress bar.
      keep, show, logits: see `Accumulator`.

    Raises:
      UserError: an image cannot be used, or there are fewer than two.
    """
    accumulator = Accumulator(len(images), keep, show, logits)
    for batch, features in _features(images.batches(extractor.batch_size), extractor, label, len(images)):
        accumulator.add(batch, features)
    return accumulator.summary()


def _features(
    batches: Iterable[np.ndarray], extractor: Extractor, label: str, count: int
) -> Iterator[tuple[np.ndarray, Features]]:
    """Yields batches of images with their features, and shows a progress bar over `count` images."""
    progress = Progress(f"features of {label}", count, unit="image")
    for batch, features in extract_all(extractor, batches):
        progress.update(len(batch))
        yield batch, features
    progress.close()


class Reference:
    """The reference that images are scored against: stored statistics, images, or both.

    Attributes:
      name: its path, for messages and reports.
      kind: a text that says whether the images are training images, validation images or unnamed.
      statistics: a text that says where the statistics come from.
      images: the images, or None if there are only statistics.
      gaussians: the statistics by kind of features; complete after `prepare`.
      pool, places: the features for precision and recall, float32 [n, F], and the places of their images in the set,
        int [n]; None before `prepare`, without images, and after `prepare` without features.
    """

    def __init__(self, path: epath.PathLike, kind: str | None, image_size: int | None = None):
        """Reads the stored statistics and opens the images. No features are extracted before `prepare`.

        Args:
          path: an .npz with statistics, images (arr_0) or both, or a folder of images.
          kind: one of `REFERENCE_KINDS`, or None if it is not known.
          image_size: see `image_sets.open_images`.

        Raises:
          UserError: it cannot be read, or has neither statistics nor images.
        """
        path = epath.Path(path)
        self.name = str(path)
        adm = path.name.startswith(_ADM_REFERENCE)
        self.kind = f"{kind or ('training' if adm else 'unnamed')} images"
        if kind is None and not adm:
            self.kind += " (name them with --reference_kind)"
        self.gaussians = {} if path.is_dir() else read_statistics(path)
        self.images = (
            open_images(path, image_size) if path.is_dir() or not self.gaussians or _has_images(path) else None
        )
        self.pool = self.places = None
        self.statistics = (
            "stored in the file; its weights and resize are not known"
            if self.gaussians
            else f"computed from its {len(self.images):,} images"
        )

    def cut(self, image_size: int) -> None:
        """Sets the side in pixels to which the images of a folder are cut (ADM centre crop)."""
        if isinstance(self.images, FolderImages):
            self.images.cut(image_size)

    def check(self, extractor: Extractor, size: tuple[int, int]) -> None:
        """Raises a `UserError` if images of a size (height, width) cannot be scored against this reference."""
        wanted = extractor.num_features(size)
        if not self.gaussians and len(self.images) < 2:
            raise UserError(f"{self.name} has a single image, which has no covariance: give at least 2")
        if self.gaussians and "pool" not in self.gaussians:
            raise UserError(f"{self.name} has mu_s and sigma_s, but no mu and sigma, which the Frechet distance needs")
        if self.gaussians and len(self.gaussians["pool"].mu) != wanted:
            stored = len(self.gaussians["pool"].mu)
            raise UserError(
                f"{self.name} has statistics of {stored} features, but --features={extractor.name} gives {wanted}: "
                "choose the features that the file was made with"
            )
        if self.images is not None and extractor.num_features(self.images.size) != wanted:
            sizes = [f"{width} x {height}" for height, width in (self.images.size, size)]
            raise UserError(
                f"{self.name} has images of {sizes[0]} pixels, but the samples are {sizes[1]}: "
                f"--features={extractor.name} needs images of the same size"
            )
        spatial = self.gaussians.get("spatial")
        if spatial is not None and extractor.num_spatial and len(spatial.mu) != extractor.num_spatial:
            raise UserError(
                f"{self.name} has mu_s and sigma_s of {len(spatial.mu)} features, but sFID needs "
                f"{extractor.num_spatial}: make the file again with --save_statistics, or remove mu_s and sigma_s"
            )

    def prepare(self, extractor: Extractor, features: bool = True) -> None:
        """Computes the statistics that are not stored and, with `features`, the features for precision and recall."""
        if not self.gaussians:
            summary = summarise(self.images, extractor, "the reference", _REFERENCE_FEATURES if features else 0)
            self.gaussians = summary.gaussians
            if features:
                self.places, self.pool = spread_places(len(self.images), _REFERENCE_FEATURES), summary.pool
        elif features and self.images is not None:
            self.places = spread_places(len(self.images), _REFERENCE_FEATURES)
            batches = chosen(self.images, self.places, extractor.batch_size)
            found = _features(batches, extractor, "the reference", len(self.places))
            self.pool = np.concatenate([each.pool for _, each in found])


def _has_images(path: epath.Path) -> bool:
    with path.open("rb") as file, np.load(file) as arrays:
        return "arr_0" in arrays.files


def frechet_scores(
    samples: dict[str, Gaussian], reference: dict[str, Gaussian], names: dict[str, str]
) -> tuple[dict[str, float], list[str]]:
    """Computes the Frechet distance for each kind of features.

    Args:
      samples, reference: kind of features -> distribution.
      names: kind of features -> name of the distance.

    Returns:
      name -> distance, and warnings about missing statistics and singular covariances.
    """
    scores, warnings = {}, []
    for kind, name in names.items():
        if kind not in reference:
            warnings.append(f"no {name}: the reference has no statistics for it")
            continue
        scores[name] = frechet(samples[kind], reference[kind])
        for owner, gaussian in (("samples", samples[kind]), ("reference", reference[kind])):
            if gaussian.rank < len(gaussian.mu):
                warnings.append(
                    f"{name}: the covariance of the {owner} is singular (rank {gaussian.rank:,} of "
                    f"{len(gaussian.mu):,}), because the images are too few or too similar"
                )
    return scores, warnings


def score(
    samples: Summary, reference: Reference, extractor: Extractor, labels: np.ndarray | None = None
) -> tuple[dict[str, float], list[str]]:
    """Computes all scores that the features allow.

    Args:
      samples: the summary of the samples.
      reference: the reference, after `prepare`.
      extractor: the extractor of the features.
      labels: int [N], the classes of the samples, or None if they are not known.

    Returns:
      The scores by name, and warnings about scores that are missing or doubtful. The names are fid, sfid,
      inception_score, precision and recall for Inception; frechet_pixels, precision and recall for pixels;
      frechet_glyphs, glyph_accuracy (with labels), precision and recall for glyphs.
    """
    scores, warnings = frechet_scores(samples.gaussians, reference.gaussians, FRECHET_NAMES[extractor.name])
    if samples.logits is not None and (value := extractor.score_classes(samples.logits, labels)) is not None:
        scores[extractor.class_score] = value
    if reference.pool is None:
        warnings.append("no precision and recall: the reference has no images")
    elif min(len(reference.pool), len(samples.pool)) <= NEIGHBOURS:
        warnings.append(f"no precision and recall: they need more than {NEIGHBOURS} samples and reference images")
    else:
        progress = Progress("distances", num_distances(len(reference.pool), len(samples.pool)), unit="distance")
        scores["precision"], scores["recall"] = precision_recall(
            reference.pool, samples.pool, NEIGHBOURS, progress.update
        )
        progress.close()
    return scores, warnings


def sample_warnings(count: int, labels: np.ndarray | None) -> list[str]:
    """Returns warnings if there are too few samples, or if some classes have more samples than others.

    Args:
      count: number of samples, N.
      labels: int [N], the classes of the samples, or None if they are not known.
    """
    warnings = []
    if count < PAPERS_IMAGES:
        warnings.append(
            f"{count:,} samples, fewer than the {PAPERS_IMAGES:,} in papers, make Frechet distances larger: "
            "compare only scores of the same number of samples"
        )
    if labels is not None:
        counts = np.unique(labels, return_counts=True)[1]
        if counts.min() < counts.max():
            warnings.append(f"the {len(counts):,} classes have from {counts.min():,} to {counts.max():,} samples each")
    return warnings


def split_warnings(labels: np.ndarray) -> list[str]:
    """Returns a warning if the order of the samples makes the Inception Score too low.

    Args:
      labels: int [N], the classes of the samples in their order.
    """
    splits = [labels[start : start + SPLIT_SIZE] for start in range(0, len(labels) - SPLIT_SIZE + 1, SPLIT_SIZE)]
    classes, fewest = len(np.unique(labels)), min((len(np.unique(split)) for split in splits), default=SPLIT_SIZE)
    if 2 * fewest >= min(classes, SPLIT_SIZE):
        return []
    return [
        f"a split of {SPLIT_SIZE:,} consecutive samples has only {fewest:,} of the {classes:,} classes, so the "
        "Inception Score, a mean over splits, is too low: interleave the classes"
    ]
