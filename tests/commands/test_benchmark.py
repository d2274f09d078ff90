"""The commands `benchmark` and `aot`."""

import importlib.util
import json

import pytest
from running import refusal, run


def is_mistake(result, message):
    """Whether a command ended with exit code 2 and one line that contains the message."""
    lines = result.stderr.strip().splitlines()
    return result.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


@pytest.mark.parametrize("arguments", [[], ["dta"]])
def test_a_missing_or_wrong_name_lists_the_benchmarks(arguments):
    result = run("rar_jax", "benchmark", *arguments)
    assert is_mistake(result, "benchmark data|evaluate|sample|train"), result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample"], "name an experiment with --config"),
        (["sample", "--config=configs/digits.py", "--batch_size=a"], "--batch_size=a must be numbers, such as 1,8"),
        (
            ["sample", "--config=configs/digits.py", "--batch_size=0"],
            "batch_size=0 must be a multiple of the 8 devices",
        ),
        (
            ["train", "--config=configs/digits.py", "--config.mesh.fsdp=3"],
            "the product must be the number of devices, 8",
        ),
        (["data", "--folder=setup.py"], "--folder=setup.py: setup.py is a file, not a folder"),
        (["evaluate", "--inception=nothing.pth"], "nothing.pth"),
        (["evaluate", "--json=tests"], "--json=tests is a folder: name a file"),
        (["data", "--json=setup.py/a.json"], "--json=setup.py/a.json: setup.py is a file, not a folder"),
        (["data", "--json=gs://bucket/a.json"], "--json=gs://bucket/a.json must be a local file"),
    ],
)
def test_mistakes_with_benchmark(arguments, message):
    name, *flags = arguments
    assert message in refusal(f"benchmarks.{name}", *flags)


def test_mistakes_with_a_tokenizer():
    """The config of a RAR has other fields."""
    assert "name a tokenizer with --config" in refusal("benchmarks.train_tokenizer")
    assert "config has no field" in refusal("benchmarks.train_tokenizer", "--config=configs/digits.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:2x2"], "name an experiment with --config"),
        (["--config=configs/digits.py"], "name TPUs or GPUs, such as --topology=v5e:8x8"),
        (["--config=configs/digits.py", "--topology=b200:8"], "must begin with one of v4, v5e, v5p, v6e, a100"),
        (["--table", "--topology=h200:2"], "topology='h200:2' is not in the table, which has h200:1, h200:8, h100:8"),
        (["--what=tokenizer", "--topology=h200:1"], "name a tokenizer with --config=configs/tokenizers/NAME.py"),
        (["--config=configs/digits.py", "--config.modl.depth=1"], "config has no field 'modl.depth'; nearest: model"),
    ],
)
def test_mistakes_with_aot(arguments, message):
    assert message in refusal("aot", *arguments)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_aot(tmp_path):
    small = ["--topology=v5e:2x2", "--what=sample", "--batch_size=8", f"--json={tmp_path / 'aot.json'}"]
    analysed = run("rar_jax", "aot", "--config=configs/digits.py", *small)
    assert analysed.returncode == 0, analysed.stderr
    assert analysed.stdout.splitlines()[-1] == "fits: 0.0 of 17.2 GB per device, by count, not run"
    results = json.loads((tmp_path / "aot.json").read_text())
    assert results["digits, sample, on v5e:2x2"]["kind"] == "TPU v5 lite"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_aot_says_what_to_try_when_a_program_does_not_fit():
    analysed = run(
        "rar_jax", "aot", "--config=configs/rar_xxl.py", "--topology=v5e:2x2", "--config.train.batch_size=256"
    )
    assert analysed.returncode == 1 and analysed.stdout == ""
    (line,) = analysed.stderr.strip().splitlines()
    assert line.startswith("error: rar_xxl, train, on v5e:2x2: does not fit: needs ")
    assert line.endswith(" of 16.9 GB; try --config.train.remat=block")


@pytest.mark.long
def test_benchmark_train(tmp_path):
    small = ["--config.model.width=16", "--config.model.depth=1", "--config.train.batch_size=8", "--steps=1"]
    options = [f"--json={tmp_path / 'new' / 'train.json'}", f"--profile={tmp_path / 'trace'}"]
    measured = run("rar_jax", "benchmark", "train", "--config=configs/digits.py", *small, *options)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "new" / "train.json").read_text())["training step, digits"]
    assert results["images/s"] == pytest.approx(8 / results["step, s, median"])
    assert 0 < results["model FLOP utilisation"] < 1
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


@pytest.mark.long
def test_benchmark_data(tmp_path):
    small = ["--records=60000", "--lines=1000", f"--json={tmp_path / 'data.json'}", f"--folder={tmp_path / 'scratch'}"]
    measured = run("rar_jax", "benchmark", "data", *small)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "data.json").read_text())
    assert results["loader, 60,000 records"]["records/s, median"] > 0
    assert results["JSONL import, 1,000 lines"]["lines"] == 1000
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.long
def test_benchmark_sample(tmp_path):
    options = ["--batch_size=2,3", "--repeats=1", f"--json={tmp_path / 'sample.json'}"]
    measured = run("rar_jax", "benchmark", "sample", "--config=configs/digits.py", *options)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "sample.json").read_text())
    for batch in (2, 3):
        section = results[f"sampling, digits, batch {batch}"]
        assert section["images/s"] == pytest.approx(batch / section["decode, s, median"])
        # No decode is faster than its floor.
        assert 0 < section["floor / time"] < 1


@pytest.mark.long
def test_benchmark_evaluate(tmp_path):
    small = ["--batches=2", "--samples=300", "--references=200", f"--json={tmp_path / 'evaluate.json'}"]
    measured = run("rar_jax", "benchmark", "evaluate", *small)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "evaluate.json").read_text())
    assert results["Inception features, 256 x 256"]["GFLOP per image"] == pytest.approx(11.4, abs=0.1)
    assert results["precision and recall"]["samples"] == 300
