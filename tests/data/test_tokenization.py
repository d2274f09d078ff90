import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from rar_jax.data.pictures import center_square, cut_crops, read_picture
from rar_jax.data.records import TokenRecords
from rar_jax.data.sources import ClassFolders
from rar_jax.data.tokenization import tokenize_images
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(vqgan_file):
    return open_tokenizer(str(vqgan_file), 16)


@pytest.fixture
def spoilt(scenes, tmp_path):
    """A copy of the scenes with three unusable files, such as the first and the last of a shard."""
    folder = tmp_path / "spoilt"
    shutil.copytree(scenes, folder)
    (folder / "china" / "000_000.jpg").write_bytes(b"")
    (folder / "china" / "050_060.jpg").write_bytes(b"hello")
    jpeg = folder / "flower" / "100_120.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:3000])
    return folder


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("tokens-*")}


def everything(folder, crop=0):
    records = TokenRecords(folder)
    return records.read(np.arange(records.num_records), crop)


def test_records_are_the_codes_of_the_crops(scenes, tokenizer, tmp_path, monkeypatch):
    encoded, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "batch_size", 8)
    monkeypatch.setattr(tokenizer, "encode", lambda images: encoded.append(len(images)) or encode(images))
    made = tokenize_images(
        ClassFolders(scenes), tokenizer, tmp_path / "out", image_size=16, crops="ten", shard_size=40, num_workers=1
    )
    # The ten crops of four images fill five batches of the tokenizer.
    assert set(encoded) == {40}
    assert list(made.shards.values()) == [40, 40, 16]
    assert (made.num_images, made.crops_per_image, made.crops_together) == (96, 10, True)
    assert made.class_names == ("china", "flower") and made.tokenizer == tokenizer.fingerprint
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*made.shards, "dataset.json"}
    source = ClassFolders(scenes)
    squares = [center_square(read_picture(source[i].read()[0]), 17) for i in range(96)]
    crops = np.stack([cut_crops(square, 16, "ten", False) for square in squares])
    for crop in (0, 3, 9):
        batch = everything(tmp_path / "out", crop)
        np.testing.assert_array_equal(batch["tokens"], tokenizer.encode(crops[:, crop]))
        np.testing.assert_array_equal(batch["label"], [0] * 48 + [1] * 48)


def test_bad_images_are_listed_and_left_out(spoilt, tokenizer, tmp_path):
    source = ClassFolders(spoilt)
    made = tokenize_images(source, tokenizer, tmp_path / "out", image_size=16, shard_size=10, num_workers=1)
    assert made.num_images == 93 and list(made.shards.values()) == [8, *[10] * 5, 9, 10, 10, 6]
    lines = [line.split("\t") for line in (tmp_path / "out" / "rejected.txt").read_text().splitlines()]
    assert [name.removeprefix(str(spoilt)) for name, _ in lines] == [
        "/china/000_000.jpg",
        "/china/050_060.jpg",
        "/flower/100_120.jpg",
    ]
    assert [reason.split(" (")[0] for _, reason in lines] == [
        "it is empty",
        "it is not an image",
        "image file is truncated",
    ]
    with pytest.raises(UserError, match=r"000_000\.jpg: it is empty; without --strict, it is left out"):
        tokenize_images(source, tokenizer, tmp_path / "strict", image_size=16, strict=True, num_workers=1)
    # The folder can be used again once the images are mended, which changes their listing.
    assert not any((tmp_path / "strict").iterdir())


def test_a_shard_without_any_good_image(tokenizer, spoilt, tmp_path):
    source = ClassFolders(spoilt)
    made = tokenize_images(source, tokenizer, tmp_path / "out", image_size=16, shard_size=1, num_workers=1)
    assert len(made.shards) == 93 and "tokens-00000.array_record" not in made.shards
    assert everything(tmp_path / "out")["tokens"].shape == (93, 64)


def test_several_processes_share_the_shards(spoilt, tokenizer, tmp_path):
    source = ClassFolders(spoilt)
    options = {"image_size": 16, "shard_size": 10, "num_workers": 1, "crops": "center", "flip": True}
    whole = tokenize_images(source, tokenizer, tmp_path / "one", **options)
    for host, finished in ((2, False), (0, False), (1, True)):
        made = tokenize_images(source, tokenizer, tmp_path / "three", process_index=host, process_count=3, **options)
        assert (made is not None) == finished
    assert made == whole
    assert shards(tmp_path / "three") == shards(tmp_path / "one")
    assert (tmp_path / "three" / "rejected.txt").read_text() == (tmp_path / "one" / "rejected.txt").read_text()


def test_an_output_with_other_arguments_is_refused(scenes, tokenizer, tmp_path):
    source, options = ClassFolders(scenes), {"image_size": 16, "shard_size": 10, "num_workers": 1}
    tokenize_images(source, tokenizer, tmp_path / "out", process_index=0, process_count=2, **options)
    with pytest.raises(UserError, match=r"was started with crops='center', not 'ten', shard_size=10, not 20"):
        tokenize_images(source, tokenizer, tmp_path / "out", **options | {"crops": "ten", "shard_size": 20})
    made = tokenize_images(source, tokenizer, tmp_path / "out", process_index=1, process_count=2, **options)
    assert made.num_images == 96
    written = tmp_path / "out" / "dataset.json"
    before = (written.stat().st_ino, written.stat().st_mtime_ns)
    assert tokenize_images(source, tokenizer, tmp_path / "out", **options) == made
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == before
    with pytest.raises(UserError, match=r"was started with flip=False, not True"):
        tokenize_images(source, tokenizer, tmp_path / "out", flip=True, **options)


def test_a_name_that_is_not_text_and_an_image_one_pixel_wide(scenes, tokenizer, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    shutil.copy(scenes / "china" / "000_000.jpg", tmp_path / "images" / "a" / "good.jpg")
    with open(os.fsencode(tmp_path / "images" / "a") + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"not an image")
    Image.new("RGB", (1, 100_000)).save(tmp_path / "images" / "a" / "thin.png")
    source = ClassFolders(tmp_path / "images")
    assert tokenize_images(source, tokenizer, tmp_path / "out", image_size=16, num_workers=1).num_images == 1
    rejected = (tmp_path / "out" / "rejected.txt").read_text().splitlines()
    assert sorted(line.rsplit("/", 1)[1] for line in rejected) == [
        "caf\\udce9.jpg\tit is not an image",
        "thin.png\tit is 1 x 100000 pixels, too narrow to cut a square",
    ]


def test_a_file_that_cannot_be_read_ends_the_work(scenes, tokenizer, tmp_path):
    shutil.copytree(scenes / "china", tmp_path / "images" / "china")
    source = ClassFolders(tmp_path / "images")
    (tmp_path / "images" / "china" / "100_120.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"100_120\.jpg"):
        tokenize_images(source, tokenizer, tmp_path / "out", image_size=16, num_workers=1)
    assert not (tmp_path / "out" / "dataset.json").exists()


AT_EXIT = """
import atexit, os, sys
atexit.register(lambda: open(os.path.join({folder!r}, str(os.getpid())), "w").write(str("jax" in sys.modules)))
"""


def start(images, output, vqgan_file, **environment):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"} | environment
    command = [sys.executable, "-m", "rar_jax", "tokenize", f"--images={images}", f"--output={output}"]
    command += [f"--tokenizer={vqgan_file}", "--image_size=64", "--crops=ten", "--shard_size=8", "--workers=1"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(entry))
        except (OSError, ValueError, IndexError):
            continue
    return found


def test_killed_in_the_middle_and_started_again(spoilt, vqgan_file, tmp_path):
    """After kill -9, a second run writes the same records as an undisturbed run and leaves finished shards alone."""
    (tmp_path / "site").mkdir()
    (tmp_path / "ends").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AT_EXIT.format(folder=str(tmp_path / "ends")))
    undisturbed = start(spoilt, tmp_path / "whole", vqgan_file, PYTHONPATH=str(tmp_path / "site"))
    assert undisturbed.wait(timeout=300) == 0, undisturbed.stderr.read()
    # Worker processes do not import JAX, which takes seconds and memory.
    imported = {int(file.name): file.read_text() for file in (tmp_path / "ends").iterdir()}
    assert imported.pop(undisturbed.pid) == "True" and "False" in imported.values()
    assert "True" not in imported.values()
    killed = start(spoilt, tmp_path / "out", vqgan_file)
    deadline = time.monotonic() + 300
    while len(shards(tmp_path / "out")) < 4 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("tokens-*.array_record")}
    assert workers and len(finished) >= 3 and not (tmp_path / "out" / "dataset.json").exists()
    again = start(spoilt, tmp_path / "out", vqgan_file)
    assert again.wait(timeout=300) == 0, again.stderr.read()
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    # The workers of the killed process have ended.
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
