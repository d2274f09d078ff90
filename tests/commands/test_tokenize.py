import numpy as np
import pytest
from conftest import ROOT
from running import call, refusal

from rar_jax.data.records import TokenRecords
from rar_jax.data.tokenizers import open_tokenizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of --images, --tfds, --glyphs, --jsonl; given: none"),
        (["--images=a", "--jsonl=b"], "given: images, jsonl"),
        (["--images=nothing"], "name the folder to write with --output"),
        (["--images=tests", "--output=out"], "name the weights that make the tokens"),
        (
            ["--images=tests", "--output=tests/out", "--tokenizer=digits"],
            "=tests/out lies in the images' folder",
        ),
        (["--jsonl=nothing.jsonl", "--output=out"], "--jsonl=nothing.jsonl: there is no such file"),
        (
            ["--images=tests", "--output=out", "--crops=ten", "--flip", "--tokenizer=digits"],
            "--crops=ten, which includes mirror images",
        ),
        (["--images=tests", "--output=setup.py", "--tokenizer=digits"], "setup.py is a file, not a folder"),
        (["--images=tests", "--output=out", "--crops=five"], "crops"),
        (["--images=nothing", "--output=out", "--tokenizer=none.bin"], "--images=nothing: there is no such folder"),
        (["--images=tests", "--output=gs://b/out", "--tokenizer=none.bin"], "token records cannot be on gs://"),
        (
            ["--images=tests", "--output=out", "--class_list=none.txt", "--tokenizer=digits"],
            "none.txt: there is no such",
        ),
        (["--images=tests", "--output=out", "--tokenizer=digits", "--process_count=2"], "must be given together"),
        (
            ["--jsonl=a", "--output=out", "--process_count=2", "--process_index=1"],
            "--process_index has no effect with --jsonl",
        ),
        (
            ["--images=tests", "--output=out", "--tokenizer=digits", "--split=train"],
            "--split has no effect with --images: remove it",
        ),
        (
            ["--images=tests", "--output=out", "--tokenizer=digits", "--skip_bad"],
            "--skip_bad has no effect with --images",
        ),
        (
            ["--tfds=mnist", "--output=out", "--tokenizer=digits", "--class_list=a"],
            "--class_list has no effect with --tfds",
        ),
        (["--glyphs=9", "--output=out", "--tokenizer=digits"], "--image_size=256 would enlarge the glyphs"),
        (["--glyphs=9", "--output=out", "--tokenizer=digits", "--class_list=a"], "--class_list has no effect"),
        (["--images=tests", "--output=out", "--num_classes=36"], "--num_classes has no effect with --images"),
        (["--glyphs=9", "--output=out", "--tokenizer=digits", "--image_size=8", "--split=all"], "no split 'all'"),
        (["--jsonl=a", "--output=out", "--noflip"], "--flip has no effect with --jsonl"),
        (["--jsonl=a", "--output=out", "--image_size=32"], "--image_size has no effect with --jsonl: remove it"),
        (
            ["--jsonl=a", "--output=out", "--class_list=a", "--num_classes=9"],
            "--num_classes has no effect with",
        ),
        (
            ["--jsonl=setup.py", "--output=out", "--tokenizer=digits"],
            "--codebook_size=1024, but --tokenizer=digits has 17 codes: set --codebook_size=17",
        ),
        (
            ["--jsonl=setup.py", "--output=out", "--class_list=/dev/null"],
            "--class_list=/dev/null has no class names: write",
        ),
        (["--images=tests", "--output=out", "--tokenizer=digits", "--class_list=/dev/null"], "has no class names"),
        (["--tfds=mnist", "--output=out", "--tokenizer=digits", "--num=3"], "'num'"),
    ],
)
def test_mistakes_with_tokenize(arguments, message):
    assert message in refusal("tokenize", *arguments)
    assert not (ROOT / "out").exists()


def test_a_class_list_is_utf8_text_with_or_without_a_mark(tmp_path):
    names, line = tmp_path / "names.txt", tmp_path / "tokens.jsonl"
    line.write_text('{"class_id": 1, "tokens": [0, 1, 2, 3]}\n')
    flags = [f"--jsonl={line}", "--grid_side=2", f"--class_list={names}", f"--output={tmp_path / 'out'}"]
    names.write_bytes("caf\u00e9\ncat\n".encode("latin-1"))
    assert "names.txt is not UTF-8 text" in refusal("tokenize", *flags)
    names.write_bytes("caf\u00e9\ncat\n".encode("utf-8-sig"))
    assert call("tokenize", *flags).returncode == 0
    assert TokenRecords(tmp_path / "out").description.class_names == ("caf\u00e9", "cat")


def test_lines_name_the_tokenizer_that_made_them(tmp_path, vqgan_file):
    (tmp_path / "tokens.jsonl").write_text('{"class_id": 1, "tokens": [0, 1, 2, 3]}\n')
    flags = [f"--jsonl={tmp_path / 'tokens.jsonl'}", "--grid_side=2", "--num_classes=2"]
    for name, side in (("digits", 8), (str(vqgan_file), 16)):
        tokenizer = open_tokenizer(name, side)
        out, codes = tmp_path / tokenizer.fingerprint, f"--codebook_size={tokenizer.codebook_size}"
        result = call("tokenize", *flags, codes, f"--output={out}", f"--tokenizer={name}")
        assert result.returncode == 0, result.stderr
        assert TokenRecords(out).description.tokenizer == tokenizer.fingerprint


def test_glyphs_are_tokenized(tmp_path):
    """The digits tokenizer takes their brightness at 8 x 8 pixels."""
    flags = ["--glyphs=36", "--num_classes=36", "--split=heldout", "--image_size=8", "--tokenizer=digits"]
    result = call("tokenize", *flags, f"--output={tmp_path / 'tokens'}")
    assert result.returncode == 0, result.stderr
    records = TokenRecords(tmp_path / "tokens")
    assert records.description.class_names[-1] == "Z"
    np.testing.assert_array_equal(records.read(np.arange(36))["label"], np.arange(36))
