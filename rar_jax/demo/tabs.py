"""The tabs of the page, by Gradio: their controls, and which control starts which action."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from rar_jax.demo import pictures
from rar_jax.demo.events import Drawn, Events
from rar_jax.demo.studio import COMPARED_CLASSES, MAX_BYTES
from rar_jax.errors import UserError

_FOLDER = pathlib.Path(__file__).parent
# Tells the page which button under which image was pressed, and opens the tab that has the action's name.
_PRESSED = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  trigger("select", {action: button.dataset.action, number: Number(button.dataset.number)});
  document.querySelector(`[role=tab][data-tab-id=${button.dataset.action}]`)?.click();
});"""


def read_file(*names: str) -> str:
    """Returns the contents of files of this folder, one after another."""
    return "\n".join((_FOLDER / name).read_text() for name in names)


def guarded(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Returns a generator function that shows the message of a `UserError` on the page."""

    @functools.wraps(function)
    def run(*arguments):
        try:
            yield from function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), title="This does not work", print_exception=False) from None

    return run


class _Drawing:
    """What the tabs Sample and Fill share: a seed, buttons to draw and to stop, and what is drawn."""

    def __init__(self, events: Events):
        self.events = events

    def controls(self, verb: str, counts: str) -> None:
        """Adds the controls under those of the tab."""
        largest = self.events.studio.max_images
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= largest]
        self.count = gr.Radio(sizes, value=min(4, sizes[-1]), label=counts)
        with gr.Row(elem_classes="seed"):
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=120)
            dice = gr.Button("New seed", size="sm", min_width=100)
        with gr.Row():
            self.start = gr.Button(verb, variant="primary", min_width=120)
            self.stop = gr.Button("Stop", variant="stop", min_width=100)
        dice.click(self.events.dice, None, self.seed, queue=False, show_progress="hidden")

    def results(self, name: str, waiting: str) -> None:
        """Adds the status, the images, the map of the order, the recipe and the downloads."""
        self.drawn = gr.State(None, time_to_live=3600)
        self.status = gr.HTML(pictures.status(waiting))
        self.result = gr.HTML(pictures.placeholder("Images appear here"), js_on_load=_PRESSED, elem_id=f"{name}-result")
        with gr.Row():
            with gr.Column(scale=1, min_width=140):
                self.order = gr.HTML("", elem_id=f"{name}-order")
            with gr.Column(scale=3, min_width=240):
                save = gr.Button("Prepare downloads", size="sm")
                files = gr.HTML("", elem_id=f"{name}-files")
        with gr.Accordion("The same images again, by a command or in Python", open=False):
            self.recipe = gr.HTML("", elem_classes="recipe")

        def prepare(drawn):
            yield self.events.downloads(drawn)

        save.click(guarded(prepare), self.drawn, files, show_progress="hidden")

    def connect_drawing(self, function: Callable, inputs: list, options: dict) -> None:
        """Connects the buttons. The function gets the values of `inputs`, and the options by name."""
        names, count = list(options), len(inputs)

        def draw(*values):
            yield from function(*values[:count], dict(zip(names, values[count:], strict=True)))

        outputs = [self.status, self.result, self.order, self.recipe, self.drawn]
        running = self.start.click(
            guarded(draw), [*inputs, *options.values()], outputs, concurrency_id="model", show_progress="hidden"
        )
        stopped = pictures.status("Stopped")
        self.stop.click(lambda: stopped, None, self.status, cancels=[running], queue=False, show_progress="hidden")


class SampleTab(_Drawing):
    """The tab in which images are sampled."""

    def __init__(self, events: Events):
        super().__init__(events)
        with gr.Tab("Sample", id="sample"), gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.classes = gr.Dropdown(
                    events.studio.choices(), value=[0], multiselect=True, label="Classes",
                    info="Type to search by name.", max_choices=events.studio.max_images,
                )  # fmt: skip
                self.controls("Draw", "Number of images")
            with gr.Column(scale=2, min_width=300):
                self.results("sample", "Choose classes and press Draw")

    def connect(self, options: dict) -> None:
        self.connect_drawing(self.events.sample, [self.classes, self.count, self.seed], options)


class FillTab(_Drawing):
    """The tab in which a part of an image is drawn again."""

    def __init__(self, events: Events):
        super().__init__(events)
        with gr.Tab("Fill", id="fill"), gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.history = gr.State([], time_to_live=3600)
                if warning := events.warning():
                    gr.HTML(warning)
                self.canvas = gr.HTML(
                    events.canvas(None), html_template=read_file("brush.html"), limit=MAX_BYTES, elem_id="canvas",
                    js_on_load=read_file("brush.js", "upload.js"),
                )  # fmt: skip
                self.undo = gr.Button("Undo", size="sm")
                self.label = gr.Dropdown(
                    self.events.studio.choices(), value=0, label="Class to draw", info="Type to search by name."
                )
                self.controls("Fill", "Number of fillings")
            with gr.Column(scale=2, min_width=300):
                self.results("fill", "Open an image, paint over a part of it and press Fill")

    def connect(self, options: dict) -> None:
        self.connect_drawing(self.events.fill, [self.canvas, self.label, self.count, self.seed], options)
        changed = [self.canvas, self.history]

        def keep(drawn: Drawn | None, canvas: dict, history: list, pressed: gr.EventData):
            yield self.events.taken(drawn, pressed.number), self.events.remember(history, canvas)

        def opened(canvas: dict, history: list, upload: gr.EventData):
            yield self.events.canvas(self.events.open(upload._data)), self.events.remember(history, canvas)

        def undo(canvas: dict, history: list):
            return (history[-1], history[:-1]) if history else (canvas, history)

        self.result.select(guarded(keep), [self.drawn, *changed], changed, show_progress="hidden")
        self.canvas.upload(guarded(opened), changed, changed, show_progress="hidden")
        self.undo.click(undo, changed, changed, show_progress="hidden")


class LikelihoodTab:
    """The tab in which classes are compared for an image."""

    def __init__(self, events: Events):
        self.events = events
        few = events.studio.num_classes <= COMPARED_CLASSES
        info = "All, if none is chosen." if few else f"Up to {COMPARED_CLASSES}."
        with gr.Tab("Likelihood", id="judge"), gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.photo = gr.HTML(
                    {"image": ""}, html_template=read_file("photo.html"), js_on_load=read_file("photo.js", "upload.js"),
                    limit=MAX_BYTES, elem_id="photo",
                )  # fmt: skip
                self.classes = gr.Dropdown(
                    events.studio.choices(),
                    multiselect=True,
                    label="Classes to compare",
                    info=info,
                    max_choices=COMPARED_CLASSES,
                )
                self.orders = gr.Slider(
                    0, 16, 0, step=1, label="Random orders", info="0 reads each image in the run's scan order."
                )
                with gr.Row():
                    self.start = gr.Button("Compare", variant="primary", min_width=120)
                    self.stop = gr.Button("Stop", variant="stop", min_width=100)
            with gr.Column(scale=2, min_width=300):
                self.status = gr.HTML(pictures.status("Open an image, or take one from the Sample tab"))
                self.bars = gr.Label(label="Most likely classes", num_top_classes=10, elem_id="bars")
                self.heat = gr.HTML("", elem_id="heat")

    def connect(self) -> None:
        def opened(upload: gr.EventData):
            yield {"image": pictures.data_uri(self.events.open(upload._data))}

        def compare(photo: dict, classes: list, orders: int):
            yield from self.events.judge(photo["image"], classes, orders)

        running = self.start.click(
            guarded(compare), [self.photo, self.classes, self.orders], [self.status, self.bars, self.heat],
            concurrency_id="model", show_progress="hidden",
        )  # fmt: skip
        stopped = pictures.status("Stopped")
        self.stop.click(lambda: stopped, None, self.status, cancels=[running], queue=False, show_progress="hidden")
        self.photo.upload(guarded(opened), None, self.photo, show_progress="hidden")
