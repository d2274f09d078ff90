"""Scores of images against a reference, as OpenAI's ADM evaluator computes them, and what must be said beside them."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from rar_jax.errors import UserError
from rar_jax.evaluation.features import Extractor, Features, extract_all
from rar_jax.evaluation.image_sets import FolderImages, ImageSet, chosen, open_images, rows_at
from rar_jax.evaluation.neighbours import num_distances, precision_recall
from rar_jax.evaluation.references import read_statistics
from rar_jax.evaluation.statistics import SPLIT_SIZE, Gaussian, Moments, frechet, inception_score
from rar_jax.progress import Progress

# What the ADM evaluator takes: neighbours, and reference features. It takes the first ones, of a reference that has no
# more and no order; of other sets the first ones can be of a few classes.
NEIGHBOURS = 3
_REFERENCE_FEATURES = 10_000
# What the papers' scores are of.
PAPERS_IMAGES = 50_000
# The names of ADM's reference batches, whose statistics are of the ImageNet training set.
_ADM_REFERENCE = "VIRTUAL_imagenet"
REFERENCE_KINDS = ("training", "validation")
# Frechet distances of each kind of features, by extractor: only Inception's are what papers call FID.
FRECHET_NAMES = {"inception": {"pool": "fid", "spatial": "sfid"}, "pixels": {"pool": "frechet_pixels"}}
# The same of reconstructions against their images, which must not be taken for it.
RECONSTRUCTION_NAMES = FRECHET_NAMES | {"inception": {"pool": "rfid", "spatial": "rsfid"}}


@dataclasses.dataclass
class Summary:
    """What scores need to know of images.

    Attributes:
      gaussians: pool and, of Inception features, spatial.
      pool: float32 [n, F], of those that were to be kept.
      logits: float32 [N, classes], where they were asked for and there are any.
      shown, shown_pool: some of the images, uint8 [n, H, W, 3], and their features, [n, F].
    """

    gaussians: dict[str, Gaussian]
    pool: np.ndarray
    logits: np.ndarray | None
    shown: np.ndarray
    shown_pool: np.ndarray


class Accumulator:
    """Counts images and their features in."""

    def __init__(self, total: int, keep: int = 0, show: int = 0, logits: bool = False):
        """Args:
        total: how many images there will be.
        keep: pool features to keep, those of `spread_places`.
        show: images to keep, spread evenly over all.
        logits: whether to keep them, for the Inception Score.
        """
        self._kept, self._keeps_logits = spread_places(total, keep), logits
        self._places = set(np.linspace(0, total - 1, min(show, total)).round().astype(int).tolist())
        self._moments = {"pool": Moments(), "spatial": Moments()}
        self._pool, self._logits, self._shown, self._shown_pool = [], [], [], []

    def add(self, images: np.ndarray, features: Features) -> None:
        """Counts a batch in."""
        start = self._moments["pool"].count
        for i in range(len(images)):
            if start + i in self._places:
                self._shown.append(np.array(images[i]))
                self._shown_pool.append(np.array(features.pool[i]))
        # Copied, all of them: a view would keep the features of the whole batch.
        self._pool.append(features.pool[rows_at(self._kept, start, len(images))])
        self._moments["pool"].add(features.pool)
        if features.spatial is not None:
            self._moments["spatial"].add(features.spatial)
            if self._keeps_logits:
                self._logits.append(np.array(features.logits))

    def summary(self) -> Summary:
        """Of all that was counted in. Raises UserError where that is fewer than two images."""
        return Summary(
            gaussians={kind: moments.gaussian() for kind, moments in self._moments.items() if moments.count},
            pool=np.concatenate(self._pool),
            logits=np.concatenate(self._logits) if self._logits else None,
            shown=np.array(self._shown),
            shown_pool=np.array(self._shown_pool),
        )


def spread_places(total: int, count: int) -> np.ndarray:
    """`count` of `total` places, or all if there are no more: int [n], rising.

    One, drawn once and for all, of each of `count` equal stretches. Neither of images sorted by class nor of classes in
    turn does it leave classes out, as the first ones or every n-th would.
    """
    edges = np.arange(min(count, total) + 1) * total // max(1, min(count, total))
    drawn = np.random.default_rng(0).random(len(edges) - 1)
    return edges[:-1] + (drawn * np.diff(edges)).astype(int)


def summarise(
    images: ImageSet, extractor: Extractor, label: str, keep: int = 0, show: int = 0, logits: bool = False
) -> Summary:
    """Extracts the features of images, with a progress bar, and counts them in.

    Args:
      images: the set.
      extractor: of the features.
      label: of the set, for the bar.
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
    """Images and their features, by batches, with a progress bar over `count` images."""
    progress = Progress(f"features of {label}", count, unit="image")
    for batch, features in extract_all(extractor, batches):
        progress.update(len(batch))
        yield batch, features
    progress.close()


class Reference:
    """What images are scored against: stored statistics, images, or both.

    Attributes:
      name: for people.
      kind: what the images are, training, validation or not said.
      statistics: where they come from.
      images: the images, or None.
      gaussians: after `prepare`: the statistics.
      pool, places: after `prepare`: the features that precision and recall are of, and the places of their images, or
        None.
    """

    def __init__(self, path: epath.PathLike, kind: str | None, image_size: int | None = None):
        """Reads what is stored; `prepare` does the rest.

        Args:
          path: an .npz with statistics, images (arr_0) or both, or a folder of images.
          kind: one of `REFERENCE_KINDS`, where it is known.
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
            "as stored, by whatever weights and resize they were made"
            if self.gaussians
            else f"of its {len(self.images):,} images"
        )

    def cut(self, image_size: int) -> None:
        """Has the pictures of a folder cut to this side (ADM centre crop)."""
        if isinstance(self.images, FolderImages):
            self.images.cut(image_size)

    def check(self, extractor: Extractor, size: tuple[int, int]) -> None:
        """Raises UserError if images of a height and width cannot be scored against it, before any work."""
        wanted = extractor.num_features(size)
        if self.gaussians and "pool" not in self.gaussians:
            raise UserError(f"{self.name} has mu_s and sigma_s but no mu and sigma")
        if self.gaussians and len(self.gaussians["pool"].mu) != wanted:
            stored = len(self.gaussians["pool"].mu)
            raise UserError(
                f"{self.name} has statistics of {stored} features, and those of --features={extractor.name} are "
                f"{wanted}: choose the features that it was made with"
            )
        if self.images is not None and extractor.num_features(self.images.size) != wanted:
            sizes = [f"{width} x {height}" for height, width in (self.images.size, size)]
            raise UserError(
                f"{self.name} has images of {sizes[0]}, and the samples are {sizes[1]}: --features={extractor.name} "
                "compares images of one size only"
            )
        spatial = self.gaussians.get("spatial")
        if spatial is not None and extractor.num_spatial and len(spatial.mu) != extractor.num_spatial:
            raise UserError(
                f"{self.name} has mu_s and sigma_s of {len(spatial.mu)} features, and those of sFID are "
                f"{extractor.num_spatial}: make them again with --save_statistics, or leave out mu_s and sigma_s"
            )

    def prepare(self, extractor: Extractor, features: bool = True) -> None:
        """Extracts what is not stored: statistics and, with `features`, those that precision and recall are of."""
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
    """Frechet distances of the kinds of features in `names`, by their names there, and what is wrong with them."""
    scores, warnings = {}, []
    for kind, name in names.items():
        if kind not in reference:
            warnings.append(f"no {name}: the reference has no such statistics")
            continue
        scores[name] = frechet(samples[kind], reference[kind])
        for whose, gaussian in (("samples", samples[kind]), ("reference", reference[kind])):
            if gaussian.rank < len(gaussian.mu):
                warnings.append(
                    f"{name}: the covariance of the {whose} is singular (rank {gaussian.rank:,} of "
                    f"{len(gaussian.mu):,}): they do not vary in the other directions"
                )
    return scores, warnings


def score(samples: Summary, reference: Reference, extractor: Extractor) -> tuple[dict[str, float], list[str]]:
    """The scores that the features allow, and what is wrong with them.

    Returns:
      fid, sfid, inception_score, precision, recall; of pixels frechet_pixels, precision, recall. And warnings.
    """
    scores, warnings = frechet_scores(samples.gaussians, reference.gaussians, FRECHET_NAMES[extractor.name])
    if samples.logits is not None:
        scores["inception_score"] = inception_score(samples.logits)
    if reference.pool is None:
        warnings.append("no precision and recall: the reference has no images")
    elif min(len(reference.pool), len(samples.pool)) <= NEIGHBOURS:
        warnings.append(f"no precision and recall: they need more than {NEIGHBOURS} images of each")
    else:
        progress = Progress("distances", num_distances(len(reference.pool), len(samples.pool)), unit="distance")
        scores["precision"], scores["recall"] = precision_recall(
            reference.pool, samples.pool, NEIGHBOURS, progress.update
        )
        progress.close()
    return scores, warnings


def warnings_of(count: int, labels: np.ndarray | None) -> list[str]:
    """What is wrong with so many samples, of the classes int [N] or None: too few, or not as many of each class."""
    warnings = []
    if count < PAPERS_IMAGES:
        warnings.append(
            f"{count:,} samples, fewer than the papers' {PAPERS_IMAGES:,}, make Frechet distances larger: "
            "compare only with scores of as many"
        )
    if labels is not None:
        counts = np.unique(labels, return_counts=True)[1]
        if counts.min() < counts.max():
            warnings.append(f"the {len(counts):,} classes have from {counts.min():,} to {counts.max():,} samples each")
    return warnings


def split_warnings(labels: np.ndarray) -> list[str]:
    """What is wrong for the Inception Score with samples of the classes int [N], in this order."""
    splits = [labels[start : start + SPLIT_SIZE] for start in range(0, len(labels) - SPLIT_SIZE + 1, SPLIT_SIZE)]
    classes, fewest = len(np.unique(labels)), min((len(np.unique(split)) for split in splits), default=SPLIT_SIZE)
    if 2 * fewest >= min(classes, SPLIT_SIZE):
        return []
    return [
        f"{SPLIT_SIZE:,} consecutive samples are of {fewest:,} of the {classes:,} classes: the Inception Score, a mean "
        "over such splits, is too low; put the samples into an order that mixes the classes"
    ]
