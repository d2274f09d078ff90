import json

import pytest
from running import run


@pytest.mark.long
def test_benchmark_data(tmp_path):
    small = ["--records=60000", "--lines=1000", f"--json={tmp_path / 'data.json'}"]
    measured = run("rar_jax", "benchmark", "data", *small)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "data.json").read_text())
    assert results["loader, 60,000 records"]["records/s, median"] > 0
    assert results["JSONL import, 1,000 lines"]["lines"] == 1000
    assert run("rar_jax", "benchmark", "dta").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment with --config"),
        (["--config=configs/digits.py", "--batch_size=a"], "--batch_size=a must be numbers, such as 1,8"),
        (["--config=configs/digits.py", "--batch_size=0"], "--batch_size=0: 0 must be a multiple of the 1 devices"),
    ],
)
def test_mistakes_with_benchmark_sample(arguments, message):
    result = run("rar_jax", "benchmark", "sample", *arguments)
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.long
def test_benchmark_sample(tmp_path):
    options = ["--batch_size=2,3", "--repeats=1", f"--json={tmp_path / 'sample.json'}"]
    measured = run("rar_jax", "benchmark", "sample", "--config=configs/digits.py", *options)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "sample.json").read_text())
    for batch in (2, 3):
        section = results[f"sampling, digits, batch {batch}"]
        assert section["images/s"] == pytest.approx(batch / section["decode, s, median"])
        # Nothing is faster than its floor.
        assert 0 < section["floor / time"] < 1


@pytest.mark.long
def test_benchmark_evaluate(tmp_path):
    small = ["--batches=2", "--samples=300", "--references=200", f"--json={tmp_path / 'evaluate.json'}"]
    measured = run("rar_jax", "benchmark", "evaluate", *small)
    assert measured.returncode == 0, measured.stderr
    results = json.loads((tmp_path / "evaluate.json").read_text())
    assert results["Inception features, 256 x 256"]["GFLOP an image"] == pytest.approx(11.4, abs=0.1)
    assert results["precision and recall"]["samples"] == 300
