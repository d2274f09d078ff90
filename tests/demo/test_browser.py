"""The page in a real browser: Chromium without a window, driven by Playwright."""

import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from rar_jax.demo import pictures
from rar_jax.training import loop
from rar_jax.training.run import prepare

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        bool(MISSING) or CHROMIUM is None,
        reason="needs a browser: apt-get install chromium && pip install -e .[demo] playwright",
    ),
]
# The first drawing compiles. Milliseconds.
PATIENCE = 240_000


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    """The folder of a short run on the digits that keeps random orders."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(
        train={"epochs": 2},
        permutation={"anneal_start_epoch": 0, "anneal_end_epoch": 0, "final_randomness": 0.5},
    )
    assert loop.train(prepare(config, folder))
    return folder


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    """The address of the page, and the process that serves it."""
    port, temporary = free_port(), tmp_path_factory.mktemp("gradio")
    environment = os.environ | {"GRADIO_TEMP_DIR": str(temporary), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "rar_jax", "serve", f"--checkpoint={run}", f"--port={port}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + PATIENCE / 1000
    while True:
        try:
            urllib.request.urlopen(address, timeout=10).close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.5)
    yield address
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and "Traceback" not in output, output
    assert not list(temporary.rglob("*.png")), "an upload was written to a file"


@pytest.fixture
def page(server):
    """The page, opened in a browser. At the end there must be no errors in its console and no requests elsewhere."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        page.set_default_timeout(PATIENCE)
        errors, elsewhere = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: (
                elsewhere.append(request.url) if not request.url.startswith((server, "data:", "blob:")) else None
            ),
        )
        page.goto(server)
        page.get_by_role("button", name="Draw", exact=True).wait_for()
        yield page
        browser.close()
    assert errors == [] and elsewhere == []


def button(page, name):
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def status(page):
    return page.get_by_role("status").locator("visible=true")


def finish(page):
    """Waits until the images of the open tab are complete."""
    page.wait_for_function(
        """() => [...document.querySelectorAll("[role=status]")].some(
          (e) => e.offsetParent && /images? in/.test(e.innerText))"""
    )


def shown(page, name):
    """Returns the images in a part of the page: uint8 [N, H, W, 3]."""
    sources = page.locator(f"#{name} img").evaluate_all("images => images.map(image => image.src)")
    read = [np.asarray(Image.open(io.BytesIO(pictures.read_data_uri(source)))) for source in sources]
    return np.stack(read) if read else np.zeros((0,))


def test_sample_fill_and_compare(page, tmp_path):
    button(page, "Draw").click()
    finish(page)
    first = shown(page, "sample-result")
    assert first.shape == (4, 8, 8, 3)
    # Another seed gives other images, and pixels change while they are drawn.
    button(page, "New seed").click()
    page.evaluate(
        """() => {
          window.seen = new Set();
          const result = document.querySelector("#sample-result");
          const note = () => result.querySelectorAll("img").forEach((image) => seen.add(image.src));
          new MutationObserver(note).observe(result, {subtree: true, childList: true, attributes: true});
        }"""
    )
    button(page, "Draw").click()
    page.wait_for_function("() => window.seen.size > 4")
    finish(page)
    assert (shown(page, "sample-result") != first).any()
    button(page, "Prepare downloads").click()
    page.get_by_role("link", name="Animation").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Image 2").click()
    download.value.save_as(tmp_path / "image.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), shown(page, "sample-result")[1])

    image = shown(page, "sample-result")[1]
    page.locator("#sample-result button[data-action=fill][data-number='1']").click()
    canvas = page.locator("#canvas canvas")
    canvas.wait_for()
    page.wait_for_timeout(1000)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 5, steps=10)
    page.mouse.up()
    button(page, "Fill").click()
    finish(page)
    filled = shown(page, "fill-result")
    assert filled.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(filled[:, 2:], np.stack([image[2:]] * 4))
    assert (filled[:, :2] != image[:2]).any()

    page.get_by_role("tab", name="Sample").click()
    page.locator("#sample-result button[data-action=judge][data-number='1']").click()
    button(page, "Compare").click()
    page.get_by_text("nats per token given").wait_for()
    assert shown(page, "heat").shape[0] == 1
    assert "%" in page.locator("#bars").inner_text()


def test_stop_keeps_what_is_drawn(page):
    page.get_by_label("8", exact=True).first.check()
    button(page, "Draw").click()
    page.locator("#sample-result img").first.wait_for()
    button(page, "Stop").click()
    page.get_by_text("Stopped").wait_for()
    before = shown(page, "sample-result")
    page.wait_for_timeout(2000)
    np.testing.assert_array_equal(shown(page, "sample-result"), before)


def test_a_bad_upload_gives_a_message(page):
    page.get_by_role("tab", name="Fill").click()
    page.locator("#canvas input[type=file]").set_input_files(
        {"name": "notes.png", "mimeType": "image/png", "buffer": b"not an image"}
    )
    page.get_by_text("it is not an image").wait_for()


@pytest.mark.parametrize("width", [1280, 390])
def test_every_control_has_a_name_and_nothing_is_too_wide(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("Sample", "Fill", "Likelihood"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, canvas")].filter(e =>
              e.offsetParent && !(e.innerText || e.ariaLabel || e.title || e.labels?.length ||
                e.getAttribute("aria-labelledby"))).map(e => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []
