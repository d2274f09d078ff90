import dataclasses
import io
import threading

import numpy as np
import pytest
import running
from PIL import Image
from safetensors.numpy import save_file

from rar_jax.demo import pictures
from rar_jax.demo.events import Events
from rar_jax.demo.recipes import Model, fill_recipe, sample_recipe
from rar_jax.demo.studio import MAX_BYTES, Studio
from rar_jax.errors import UserError
from rar_jax.generate import load
from rar_jax.generation.painting import Painting


@pytest.fixture(scope="module")
def events(golden, vqgan_file, tmp_path_factory):
    """The actions of a model with a grid of 4 x 4 tokens, 7 classes and images of 8 x 8 pixels."""
    path = tmp_path_factory.mktemp("rar") / "rar.safetensors"
    save_file(golden.tensors("params/"), path)
    model = Model(str(path), None, str(vqgan_file))
    return Events(Studio(load(path, tokenizer=str(vqgan_file)), max_images=4), model)


@pytest.fixture(scope="module")
def options(events):
    """The options as the page sends them, with some that are not the run's."""
    return dataclasses.asdict(events.studio.generator.options()) | {"guidance_scale": 2.0, "temperature": 1.5}


@pytest.fixture(scope="module")
def sampled(events, options):
    """What the page shows while two images of the classes 3 and 5 are drawn."""
    return list(events.sample([3, 5], 2, 7.0, options))


def test_images_appear_while_they_are_drawn(events, sampled):
    statuses, shown, orders, recipes, drawn = zip(*sampled, strict=True)
    assert "Compiling" in statuses[0] and drawn[0] is None
    assert "2 of 32 tokens" in statuses[1] and "2 images in" in statuses[-1]
    assert orders[1].count("unknown") == 15 and "unknown" not in orders[-1]
    assert shown[-1].count("<img") == 2 and 'data-action="fill" data-number="1"' in shown[-1]
    assert shown[1] != shown[-1] and len(set(recipes)) == 1
    assert drawn[-1].labels.tolist() == [3, 5] and len(drawn[-1].frames) >= 2
    expected = events.studio.generator.generate([3, 5], seed=7, guidance_scale=2.0, temperature=1.5)
    np.testing.assert_array_equal(drawn[-1].images, expected)


def test_a_kind_of_images_is_compiled_once(events, options, sampled):
    first, *_ = events.sample([1], 2, 0, options | {"temperature": 0.5})
    assert "Compiling" not in first[0]


def test_stopping_waits_for_the_work_and_ends_it(events, options, monkeypatch):
    monkeypatch.setattr(events.studio, "stopped", False)
    statuses, images, entered, go_on = [], Painting.images, threading.Event(), threading.Event()

    def slow_images(painting):
        entered.set()
        go_on.wait()
        return images(painting)

    monkeypatch.setattr(Painting, "images", slow_images)

    def draw():
        statuses.extend(status for status, *_ in events.sample([1], 2, 0, options))

    drawing = threading.Thread(target=draw, daemon=True)
    stopping = threading.Thread(target=events.studio.stop)
    drawing.start()
    entered.wait()
    stopping.start()
    stopping.join(0.2)
    assert stopping.is_alive()
    go_on.set()
    stopping.join()
    drawing.join()
    assert 1 <= len(statuses) <= 2 and "2 of 32 tokens" in statuses[-1]


def test_recipes_give_the_same_images(events, sampled, tmp_path):
    labels = sampled[-1][-1].labels
    given = {"guidance_scale": 2.0, "temperature": 1.5}
    command, program = sample_recipe(events.model, ["3", "5"], labels, 7, given)
    assert command in sampled[-1][3].replace("&#x27;", "'") and command.startswith("python -m rar_jax sample ")
    done = running.call(*command.split()[3:], f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = [np.asarray(Image.open(tmp_path / "images" / f"00000{i}.png")) for i in range(2)]
    # The page decodes one image at a time, which may round differently.
    np.testing.assert_allclose(np.stack(found), sampled[-1][-1].images, atol=1)
    names = {}
    exec(program, names)
    np.testing.assert_allclose(names["images"], sampled[-1][-1].images, atol=1)


def canvas_with(events, image, mask):
    return events.canvas(image) | {"mask": "".join("01"[int(covered)] for covered in mask)}


def test_filling_keeps_what_is_not_painted(events, options, sampled, tmp_path, monkeypatch):
    image, mask = sampled[-1][-1].images[0], np.arange(16) < 8
    canvas = canvas_with(events, image, mask)
    *_, (status, shown, _, _, drawn) = events.fill(canvas, 2, 2, 1, options)
    assert "2 images in" in status and 'data-action="keep"' in shown
    np.testing.assert_array_equal(drawn.images[:, 4:], np.stack([image[4:]] * 2))
    assert (drawn.images[0, :4] != drawn.images[1, :4]).any()
    monkeypatch.chdir(tmp_path)
    Image.fromarray(image).save("canvas.png")
    Image.fromarray(255 * events.pixels(canvas["mask"]).astype(np.uint8)).save("mask.png")
    names = {}
    exec(fill_recipe(events.model, "2", 2, 2, 1, {"guidance_scale": 2.0, "temperature": 1.5})[1], names)
    np.testing.assert_allclose(names["images"], drawn.images, atol=1)


def test_downloads_hold_the_images(events, sampled):
    page = events.downloads(sampled[-1][-1])
    links = dict(link.split('" href="') for link in page.replace('">', '"').split('download="')[1:])
    assert set(links) == {"grid.png", "animation.gif", "000000.png", "000001.png"}
    one = pictures.read_data_uri(links["000001.png"].split('"')[0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(one))), sampled[-1][-1].images[1])
    animation = Image.open(io.BytesIO(pictures.read_data_uri(links["animation.gif"].split('"')[0])))
    assert animation.n_frames >= 2


def test_bars_and_surprise(events, sampled):
    image = events.canvas(sampled[-1][-1].images[0])["image"]
    *_, before, last = events.judge(image, [1, 4, 6], 2)
    assert "3 of 3 classes compared" in before[0] and before[2] == "" and "nats per token" in last[0]
    assert list(last[1]) == sorted(last[1], key=last[1].get, reverse=True)
    tokens = events.studio.generator.tokenizer.encode(sampled[-1][-1].images[:1])
    each = [events.studio.generator.log_likelihood(tokens, [c], orders=2).mixture[0] for c in (1, 4, 6)]
    expected = np.exp(np.array(each, np.float64) - np.logaddexp.reduce(np.array(each, np.float64)))
    np.testing.assert_allclose([last[1][str(c)] for c in (1, 4, 6)], expected, rtol=1e-5)
    assert "Surprise of each token" in last[2]
    *_, whole = events.judge(image, [], 0)
    assert len(whole[1]) == 7


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda events, options: events.sample([], 1, 0, options), "Choose at least one class"),
        (lambda events, options: events.sample([0], 5, 0, options), "5 images are too many: at most 4"),
        (lambda events, options: events.sample([0], 1, -1, options), "The seed must be a whole number from 0"),
        (lambda events, options: events.sample([0], 1, 0, options | {"temperature": -1}), "temperature=-1"),
        (lambda events, options: events.sample([0], 1, 0, options | {"top_k": None}), "Top k is empty: enter a number"),
        (lambda events, options: events.fill(events.canvas(None), 0, 1, 0, options), "Open an image first"),
        (lambda events, options: events.judge("", [], 0), "Open an image first"),
        (lambda events, options: [events.open({"data": "data:image/png;base64,bm90IGFuIGltYWdl"})], "not an image"),
        (lambda events, options: [events.open({"data": "no address"})], "it is empty"),
        (lambda events, options: [events.open({"data": "", "size": 2 * MAX_BYTES})], "The file has 20.0 MiB"),
        (lambda events, options: [events.downloads(None)], "Draw images first"),
        (lambda events, options: [events.pixels("01")], "The mask does not fit the model"),
    ],
)
def test_mistakes_become_messages(events, options, act, message):
    with pytest.raises(UserError, match=message):
        list(act(events, options))


def test_a_mask_must_be_painted(events, options, sampled):
    with pytest.raises(UserError, match="Paint over the part"):
        list(events.fill(canvas_with(events, sampled[-1][-1].images[0], np.zeros(16, bool)), 0, 1, 0, options))


def test_uploads_are_cropped_and_the_past_is_kept(events):
    file = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(file, format="PNG")
    address = pictures.data_address(file.getvalue(), "image/png")
    image = events.open({"data": address, "size": len(file.getvalue())})
    assert image.shape == (8, 8, 3) and (image == [255, 0, 0]).all()
    canvas = events.canvas(image)
    assert events.remember([], events.canvas(None)) == [] and events.remember([], canvas) == [canvas]
    assert len(events.remember([canvas] * 50, canvas)) == 20


def test_a_model_annealed_to_one_order_has_a_warning(events, monkeypatch):
    assert events.warning().startswith('<p class="warning">Groups, other scan orders and editing need a model')
    generator = events.studio.generator
    sample = dataclasses.replace(generator.config.sample, schedule="cosine", steps=8)
    grouped = dataclasses.replace(generator, config=dataclasses.replace(generator.config, sample=sample))
    monkeypatch.setattr(events.studio, "generator", grouped)
    assert events.warning()
    kept = dataclasses.replace(generator, final_randomness=0.5)
    monkeypatch.setattr(events.studio, "generator", kept)
    assert events.warning() == ""


def test_only_orders_of_the_grid_are_offered(events, monkeypatch):
    assert {"row_major", "z_curve", "random"} <= set(events.studio.orders())
    monkeypatch.setattr(events.studio.generator.tokenizer, "grid_side", 6)
    assert "z_curve" not in events.studio.orders() and "spiral_in" in events.studio.orders()
