"""What the page's controls do: values of controls in, values of what is shown out. It does not import Gradio."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rar_jax.data.class_names import class_text
from rar_jax.demo import pictures, recipes
from rar_jax.demo.recipes import CANVAS, MASK, Model
from rar_jax.demo.studio import Studio
from rar_jax.errors import UserError
from rar_jax.generation.pictures import SampleGrid, choose_labels
from rar_jax.images.files import encode_animation
from rar_jax.sampling.options import MAX_SEED

# What can be done with an image, as buttons under it.
_SAMPLE_ACTIONS = (("fill", "Fill a part"), ("judge", "Likelihood"))
_FILL_ACTIONS = (("keep", "Keep"),)
_MAX_UNDO = 20


@dataclasses.dataclass
class Drawn:
    """The images that are shown, kept for what follows.

    Attributes:
      labels: int [N].
      images: uint8 [N, H, W, 3], the newest ones.
      frames: the images at different times.
    """

    labels: np.ndarray
    images: np.ndarray
    frames: list[np.ndarray]


class Events:
    """The actions of one page."""

    def __init__(self, studio: Studio, model: Model):
        self.studio, self.model = studio, model

    def changed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the options that differ from the run's. An emptied number field gives None."""
        if empty := [name for name, value in options.items() if value is None]:
            raise UserError(f"{empty[0].replace('_', ' ').capitalize()} is empty: enter a number")
        default = dataclasses.asdict(self.studio.generator.options())
        return {name: value for name, value in options.items() if value != default[name]}

    def dice(self) -> int:
        """Returns a random seed."""
        return random.randint(0, 99_999)

    def sample(
        self, classes: Sequence[int], count: int, seed: float, options: dict[str, Any]
    ) -> Iterator[tuple[str, str, str, str, Drawn | None]]:
        """Draws images. Yields the status, the images, the map of the order, the recipe and what to keep."""
        if not classes:
            raise UserError("Choose at least one class")
        labels = choose_labels(self.studio.generator, classes, max(int(count), len(classes)))
        captions = [self.studio.class_name(label) for label in labels]
        options, seed = self.changed(options), _seed(seed)
        names = [class_text(label, self.studio.generator.class_names) for label in classes]
        recipe = pictures.recipe(*recipes.sample_recipe(self.model, names, labels, seed, options))
        for status, shown, order, drawn in self._draw(labels, captions, _SAMPLE_ACTIONS, seed, options, None):
            yield status, shown, order, recipe, drawn

    def fill(
        self, canvas: dict[str, Any], label: int | None, results: int, seed: float, options: dict[str, Any]
    ) -> Iterator[tuple[str, str, str, str, Drawn | None]]:
        """Draws the painted part of the canvas again. Yields as `sample` does."""
        if not canvas["image"]:
            raise UserError("Open an image first, or take one from the Sample tab")
        if label is None:
            raise UserError("Choose the class to draw")
        mask = self.pixels(canvas["mask"])
        if not mask.any():
            raise UserError("Paint over the part to draw again first")
        image, results = self.image_of(canvas), int(results)
        labels, options, seed = np.full(results, label, np.int32), self.changed(options), _seed(seed)
        edited = np.repeat(image[None], results, axis=0), mask
        note = f"Save the canvas as {CANVAS} and the mask as {MASK} first."
        name = class_text(label, self.studio.generator.class_names)
        recipe = pictures.recipe(*recipes.fill_recipe(self.model, name, label, results, seed, options), note)
        for data, name in ((image, CANVAS), (255 * mask.astype(np.uint8), MASK)):
            recipe += pictures.download_link(pictures.png(data), "image/png", name, f"Save {name}")
        captions = [f"Filling {number + 1}" for number in range(results)]
        for status, shown, order, drawn in self._draw(labels, captions, _FILL_ACTIONS, seed, options, edited):
            yield status, shown, order, recipe, drawn

    def _draw(self, labels, captions, actions, seed, options, edited) -> Iterator[tuple[str, str, str, Drawn | None]]:
        drawn, shown, order = None, pictures.placeholder("..."), ""
        for frame in self.studio.draw(labels, seed, options, edited):
            if frame.images is not None and (drawn is None or frame.images is not drawn.images):
                drawn = Drawn(labels, frame.images, [*(drawn.frames if drawn else []), frame.images])
                shown = pictures.figures(frame.images, captions, actions)
            if frame.painting is not None:
                order = pictures.order_map(frame.painting.orders[0], frame.painting.known[0])
            yield pictures.status(frame.message), shown, order, drawn

    def taken(self, drawn: Drawn | None, number: int) -> dict[str, Any]:
        """Returns a canvas with one of the images that were drawn."""
        return self.canvas(_existing(drawn).images[number])

    def downloads(self, drawn: Drawn | None) -> str:
        """Returns links to each image, the grid and the animation, and shows the animation."""
        drawn = _existing(drawn)
        count = len(drawn.labels)
        grid = SampleGrid(drawn.labels, self.studio.generator.class_names, (count, count))
        whole = encode_animation([grid.draw(images[grid.numbers]) for images in drawn.frames], "gif")
        last = pictures.png(grid.draw(drawn.images[grid.numbers]))
        links = [pictures.download_link(last, "image/png", "grid.png", "Grid")]
        links.append(pictures.download_link(whole, "image/gif", "animation.gif", "Animation"))
        for number, image in enumerate(drawn.images):
            name = f"{number:06d}.png"
            links.append(pictures.download_link(pictures.png(image), "image/png", name, f"Image {number + 1}"))
        address = pictures.data_address(whole, "image/gif")
        alt = "The images as they appeared"
        return (
            f'<div class="actions">{"".join(links)}</div><div class="animation"><img src="{address}" alt="{alt}"></div>'
        )

    def judge(self, image: str, classes: Sequence[int], orders: int) -> Iterator[tuple[str, dict[str, float], str]]:
        """Compares classes. Yields the status, the probability of each class, and the map of the surprise."""
        if not image:
            raise UserError("Open an image first, or take one from the Sample tab")
        pixels = self.image_of({"image": image})
        for found in self.studio.compare(pixels, classes, int(orders)):
            names = {self.studio.class_name(label): value for label, value in found.probabilities.items()}
            heat = "" if found.surprise is None else pictures.heat_map(pixels, found.surprise)
            yield pictures.status(found.message), names, heat

    def canvas(self, image: np.ndarray | None) -> dict[str, Any]:
        """Returns the value of a canvas that shows an image, uint8 [S, S, 3], and has no mask."""
        side = self.studio.generator.tokenizer.grid_side
        return {"image": "" if image is None else pictures.data_uri(image), "grid": side, "mask": "0" * side**2}

    def image_of(self, canvas: dict[str, Any]) -> np.ndarray:
        """Returns the image on a canvas, uint8 [S, S, 3]."""
        return self.studio.read_upload(pictures.read_data_uri(canvas["image"]))

    def pixels(self, mask: str) -> np.ndarray:
        """Returns the pixels of a mask of tokens, bool [S, S]."""
        tokenizer = self.studio.generator.tokenizer
        tokens = np.array([cell == "1" for cell in mask])
        if len(tokens) != tokenizer.grid_side**2:
            raise UserError("The mask does not fit the model: reload the page")
        return (
            tokens.reshape(tokenizer.grid_side, -1).repeat(tokenizer.downsampling, 0).repeat(tokenizer.downsampling, 1)
        )

    def open(self, upload: dict[str, Any]) -> np.ndarray:
        """Decodes an uploaded file: uint8 [S, S, 3]."""
        # The page does not send a file that is too large.
        return self.studio.read_upload(pictures.read_data_uri(upload.get("data") or ""), int(upload.get("size") or 0))

    def remember(self, history: list[dict[str, Any]], canvas: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the history with a canvas added, for undo."""
        return [*history, canvas][-_MAX_UNDO:] if canvas["image"] else history

    def warning(self) -> str:
        """Returns the warning about orders for which the model was not trained, or nothing."""
        generator = self.studio.generator
        # Editing has no other schedule.
        message = generator.order_warning(generator.options(schedule="uniform"), editing=True)
        return f'<p class="warning">{message[0].upper()}{message[1:]}.</p>' if message else ""


def _existing(drawn: Drawn | None) -> Drawn:
    """Returns what was drawn. The server forgets the images of a page that was not used for long."""
    if drawn is None:
        raise UserError("Draw images first")
    return drawn


def _seed(value: float | None) -> int:
    if value is None or value != int(value) or not 0 <= value <= MAX_SEED:
        raise UserError(f"The seed must be a whole number from 0 to {MAX_SEED}")
    return int(value)
