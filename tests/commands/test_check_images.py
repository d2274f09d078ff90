import os

from running import call, refusal


def test_the_report_is_printed_and_problems_end_the_command(scenes, vqgan_file):
    done = call("check_images", f"--images={scenes}", "--image_size=160", f"--tokenizer={vqgan_file}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{scenes}: 96 images of 2 classes")
    assert call("check_images", f"--images={scenes}", "--image_size=160").returncode == 0
    done = call("check_images", f"--images={scenes}", "--image_size=161", f"--tokenizer={vqgan_file}")
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stdout.splitlines()[-2:]] == ["problem", "problem"]
    assert done.stderr.strip() == f"error: {scenes} cannot be trained on yet: see the problems above (2)"


def test_mistakes():
    assert "name the images with --images=FOLDER" in refusal("check_images")
    assert "name the images" in refusal("split_images", "--images=nowhere")
    assert "there is no such folder" in refusal("split_images", "--images=nowhere", "--output=split")
    assert "--holdout=nan must be" in refusal("split_images", "--images=a", "--output=b", "--holdout=nan")


def test_names_that_are_not_utf8_are_printed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / os.fsdecode(b"a/caf\xe9.png")).write_bytes(b"no image")
    done = call("check_images", f"--images={tmp_path}")
    assert done.returncode == 2 and r"a/caf\udce9.png" in done.stdout and done.stdout.encode()
