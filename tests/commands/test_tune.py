import json

import numpy as np
import pytest
from running import call, refusal, write_run

from rar_jax.data.digits import DigitsTokenizer, digits_split
from rar_jax.evaluation.statistics import frechet_distance
from rar_jax.generate import load


def test_a_model_is_tuned(small_config, tmp_path):
    folder, reference = tmp_path / "run", tmp_path / "train.npz"
    np.savez(reference, arr_0=digits_split("train")[0])
    write_run(folder, small_config(), steps=(2,))
    options = [f"--checkpoint={folder}", f"--reference={reference}", "--features=pixels"]
    options += ["--num=20", "--guidance_scales=1,2", "--guidance_powers=1", f"--out={tmp_path / 'tuned'}"]
    tuned = call("tune", *options)
    assert tuned.returncode == 0, tuned.stderr
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "tuning.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    # The first line holds everything that decides the scores.
    assert lines[0] == {
        "model": f"digits-{load(folder).identity}", "step": 2, "tokenizer": "digits", "dtype": "float32",
        "platform": "cpu", "images": 20, "seed": 0, "scan_order": "row_major", "guidance": "pow_cosine",
        "top_k": 0, "top_p": 1.0, "steps": 0, "schedule": "uniform", "verify": False,
        "reference": str(reference), "features": "pixels",
    }  # fmt: skip
    images = load(folder).generate(np.arange(20) % 10, guidance_scale=2.0, guidance_power=1.0)
    expected = frechet_distance(*(DigitsTokenizer().encode(part) for part in (images, digits_split("train")[0])))
    assert lines[2]["guidance_scale"] == 2 and lines[2]["frechet_pixels"] == pytest.approx(expected, rel=1e-6)
    best = min(lines[1:], key=lambda line: line["frechet_pixels"])
    flags = f"--guidance_scale={best['guidance_scale']:g} --guidance_power=1 --temperature=1"
    assert tuned.stdout.splitlines()[1].endswith(flags)
    assert (tmp_path / "tuned" / "tuning.png").exists()
    sampled = call("sample", f"--checkpoint={folder}", "--num=2", f"--out={tmp_path / 's'}", *flags.split())
    assert sampled.returncode == 0, sampled.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference=b.npz", "--temperatures=a"], "--temperatures=a must be numbers"),
        (["--reference=b.npz", "--features=pixels"], "b.npz: there is no such file"),
        (["--reference=b.npz", "--seed=4294967296"], "--seed=4294967296"),
        (["--reference=tests", "--out=tests/x"], "--out=tests/x lies in the images' folder tests"),
        ([], "name a model with --checkpoint=RUN and a reference with --reference"),
        (["--reference=tests/tiny", "--guidance_powers=0"], "--guidance_powers: guidance_power=0.0 must be above 0"),
    ],
)
def test_mistakes_with_tune(arguments, message):
    assert message in refusal("tune", "--checkpoint=nothing", *arguments)
