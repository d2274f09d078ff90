"""The work that the page asks for, without Gradio: drawing images while they are watched, and their likelihoods."""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rar_jax.data.class_names import class_label
from rar_jax.data.pictures import center_square, read_picture
from rar_jax.errors import UserError
from rar_jax.generation.generator import Generator
from rar_jax.generation.likelihood import posterior
from rar_jax.generation.painting import Painting
from rar_jax.orders import SCAN_ORDERS, scan_order
from rar_jax.sampling.options import DRAWN_ORDERS

# Images are shown about this often while they are drawn.
_UPDATES = 32
# Largest share of the time that is spent on decoding unfinished images to pixels.
_PREVIEW_SHARE = 0.2
# Largest uploaded file. Pillow refuses images of more than 179 million pixels.
MAX_BYTES = 10 * 2**20
# With more classes, the page compares chosen ones only.
COMPARED_CLASSES = 50


class Frame(NamedTuple):
    """What the page shows of images that are drawn.

    Attributes:
      message: one line.
      painting: how far the images are, or None before the first token.
      images: uint8 [N, H, W, 3], decoded at this or an earlier frame; None before the first one.
    """

    message: str
    painting: Painting | None = None
    images: np.ndarray | None = None


class Classes(NamedTuple):
    """How likely an image is given each of some classes.

    Attributes:
      message: one line.
      probabilities: label -> probability among the classes compared so far; the most likely first.
      surprise: float32 [T], -log p of each token given the most likely class, in nats, in grid order.
    """

    message: str
    probabilities: dict[int, float]
    surprise: np.ndarray | None


def _stoppable(work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Returns a method of `Studio` that yields what `work` yields, until `Studio.stop` is called."""

    @functools.wraps(work)
    def run(studio: "Studio", *arguments):
        steps = work(studio, *arguments)
        while True:
            with studio.working:
                if studio.stopped or (step := next(steps, None)) is None:
                    return
            yield step

    return run


class Studio:
    """A model and the limits under which the page uses it.

    Attributes:
      generator: the model.
      max_images: largest number of images drawn at once.
      working: held while the model computes.
      stopped: whether `stop` was called; no further step is computed.
    """

    def __init__(self, generator: Generator, max_images: int):
        self.generator = generator
        self.max_images = max_images
        self.working, self.stopped = threading.Lock(), False
        # The tokenizer decodes whole batches; an image that is watched must not wait for others.
        generator.tokenizer.batch_size = jax.local_device_count()
        self._compiled: set[Any] = set()

    @property
    def side(self) -> int:
        """The side of the images in pixels."""
        return self.generator.tokenizer.grid_side * self.generator.tokenizer.downsampling

    @property
    def num_classes(self) -> int:
        return self.generator.sampler.model.config.num_classes

    def class_name(self, label: int) -> str:
        """Returns the index of a class and, if it has one, its name."""
        return class_label(int(label), self.generator.class_names)

    def orders(self) -> list[str]:
        """Returns the orders that the model's grid has."""

        def defined(name: str) -> bool:
            try:
                scan_order(name, self.generator.tokenizer.grid_side)
            except UserError:
                return False
            return True

        return [*filter(defined, SCAN_ORDERS), *DRAWN_ORDERS]

    def choices(self) -> list[tuple[str, int]]:
        """Returns the name and the label of each class, for a list to choose from."""
        return [(self.class_name(label), label) for label in range(self.num_classes)]

    def read_upload(self, data: bytes, size: int = 0) -> np.ndarray:
        """Decodes an uploaded file to an image of the model's size, uint8 [S, S, 3].

        Args:
          data: the bytes of the file; empty if the page did not send them because they are too many.
          size: the number of bytes, as the page reports it.

        Raises:
          UserError: the file is too large, or it is not an image.
        """
        if (size := max(size, len(data))) > MAX_BYTES:
            raise UserError(f"The file has {size / 2**20:.1f} MiB: choose one of at most {MAX_BYTES // 2**20} MiB")
        try:
            picture = read_picture(data)
        except UserError as error:
            raise UserError(f"The file cannot be used: {error}. Choose a PNG, JPEG or WebP image") from None
        return center_square(picture, self.side)

    def stop(self) -> None:
        """Ends all work after the step that the model computes now, and waits for that step."""
        self.stopped = True
        with self.working:
            pass

    @_stoppable
    def draw(
        self,
        labels: np.ndarray,
        seed: int,
        options: dict[str, Any],
        edited: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Iterator[Frame]:
        """Draws images, or a part of them, and yields what to show.

        Args:
          labels: int [N], the class of each image.
          seed, options: see `Generator.generate`.
          edited: see `Generator.paint`.

        Raises:
          UserError: a value cannot be used, or there are too many images.
        """
        if len(labels) > self.max_images:
            raise UserError(f"{len(labels)} images are too many: at most {self.max_images} are drawn at once")
        given = self.generator.options(**options)
        plan = given.plan(self.generator.sampler.model.config, one_size=edited is not None)
        kind = (
            len(labels), plan._replace(drawn_order=None), given.guided, edited is None, given.temperature == 0,
            given.top_k == 0, given.top_p == 1,
        )  # fmt: skip
        compiling = ""
        if kind not in self._compiled:
            compiling = f", compiling the network for {_images(len(labels))} and these options, which is done once"
            yield Frame(compiling.removeprefix(", ").capitalize())
        every = -(-len(plan.sizes) // _UPDATES)
        began, decoding, images = time.perf_counter(), 0.0, None
        for painting in self.generator.paint(labels, seed=seed, edited=edited, every=every, **options):
            seconds = time.perf_counter() - began
            if painting.done or decoding <= _PREVIEW_SHARE * seconds:
                first, images = images is None, painting.images()
                # The first time includes the compilation of the tokenizer.
                if not (compiling and first):
                    decoding += time.perf_counter() - began - seconds
            message = f"{painting.known.sum()} of {painting.known.size} tokens in {seconds:.1f} s{compiling}"
            if painting.done:
                self._compiled.add(kind)
                message = f"{_images(len(labels))} in {time.perf_counter() - began:.1f} s"
            yield Frame(message, painting, images)

    @_stoppable
    def compare(self, image: np.ndarray, labels: Sequence[int], orders: int) -> Iterator[Classes]:
        """Computes how likely an image is given each of some classes, and yields after each class.

        Args:
          image: uint8 [S, S, 3].
          labels: the classes, or none for all.
          orders: number of random orders in which each class is read; 0 for the run's scan order.

        Raises:
          UserError: there are too many classes to compare all.
        """
        labels = [*labels] or [*range(self.num_classes)]
        if len(labels) > COMPARED_CLASSES:
            raise UserError(f"The model has {len(labels)} classes: choose up to {COMPARED_CLASSES} to compare")
        tokens, scorer = self.generator.tokenizer.encode(image[None]), self.generator.likelihood_scorer(1, orders)
        found, began = {}, time.perf_counter()
        for label in labels:
            found[label] = scorer.score(tokens, np.array([label]))
            left = (time.perf_counter() - began) / len(found) * (len(labels) - len(found))
            sums = np.array([[each.mixture[0] for each in found.values()]], np.float64)
            ranked = sorted(zip(found, posterior(sums)[0].tolist(), strict=True), key=lambda pair: -pair[1])
            message = f"{len(found)} of {len(labels)} classes compared, about {left:.0f} s left"
            yield Classes(message, dict(ranked), None)
        best = ranked[0][0]
        surprise = -found[best].tokens[0]
        message = (
            f"{surprise.mean():.2f} nats per token given {self.class_name(best)}, {time.perf_counter() - began:.1f} s"
        )
        yield Classes(message, dict(ranked), surprise)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
