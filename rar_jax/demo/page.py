"""The page, by Gradio: its tabs, the sampling options that they share, and the server."""

import contextlib
import dataclasses
import html
from collections.abc import Iterator

import gradio as gr

from rar_jax.demo.events import Drawn, Events
from rar_jax.demo.studio import MAX_BYTES
from rar_jax.demo.tabs import FillTab, LikelihoodTab, SampleTab, guarded, read_file
from rar_jax.errors import UserError
from rar_jax.sampling.options import Options

# Largest number of requests that wait for the model.
_QUEUE = 8
_SESSIONS = 32
_FONT, _MONOSPACE = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


@contextlib.contextmanager
def serving(events: Events, host: str, port: int) -> Iterator[gr.Blocks]:
    """Serves the page while the context lasts. Its value is the running page, whose `block_thread` waits for Ctrl-C.

    Args:
      events: what the page does.
      host, port: where to listen.

    Raises:
      UserError: the port cannot be used.
    """
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONOSPACE)
    blocks = page(events).queue(max_size=_QUEUE, default_concurrency_limit=1)
    try:
        blocks.launch(
            server_name=host, server_port=port, theme=theme, css=read_file("page.css"), footer_links=[], quiet=True,
            share=False, ssr_mode=False, max_file_size=MAX_BYTES, state_session_capacity=_SESSIONS,
            prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error}") from None
    try:
        yield blocks
    finally:
        # The threads of the server and of the work must end before the interpreter does, which else aborts.
        blocks.close(verbose=False)
        events.studio.stop()


def page(events: Events) -> gr.Blocks:
    """Lays the page out."""
    studio, config = events.studio, events.studio.generator.config
    with gr.Blocks(title="rar_jax", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
        gr.HTML(
            f"<h1>{html.escape(config.name)}</h1><p class='subtitle'>Step {studio.generator.step:,}, "
            f"{studio.num_classes} classes, {studio.side} x {studio.side} pixels, {config.model.num_tokens} tokens per "
            "image</p>"
        )
        with gr.Tabs():
            sample, fill, judge = SampleTab(events), FillTab(events), LikelihoodTab(events)
        with gr.Accordion("Sampling options", open=False):
            options = _options(events)
        sample.connect(options)
        fill.connect(options)
        judge.connect()

        def take(drawn: Drawn | None, canvas: dict, history: list, pressed: gr.EventData):
            taken = events.taken(drawn, pressed.number)
            if pressed.action == "fill":
                yield taken, events.remember(history, canvas), int(drawn.labels[pressed.number]), gr.skip()
            else:
                yield gr.skip(), gr.skip(), gr.skip(), {"image": taken["image"]}

        sample.result.select(
            guarded(take),
            [sample.drawn, fill.canvas, fill.history],
            [fill.canvas, fill.history, fill.label, judge.photo],
            show_progress="hidden",
        )
    return blocks


def _options(events: Events) -> dict[str, gr.components.Component]:
    """Makes a control for each sampling option, with the run's value."""
    default, controls = events.studio.generator.options(), {}
    with gr.Row():
        for field in dataclasses.fields(Options):
            choices = field.metadata["one_of"]
            if field.name == "scan_order":
                choices = events.studio.orders()
            shared = {
                "value": getattr(default, field.name), "label": field.name.replace("_", " ").capitalize(),
                "info": field.metadata["meaning"], "min_width": 260,
            }  # fmt: skip
            if choices:
                controls[field.name] = gr.Dropdown(list(choices), **shared)
            elif field.type is bool:
                controls[field.name] = gr.Checkbox(**shared)
            else:
                controls[field.name] = gr.Number(precision=0 if field.type is int else None, **shared)
    return controls
