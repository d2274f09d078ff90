"""Measures the loader, JSONL import, image decoding and tokenizer: python -m rar_jax benchmark data."""

import pathlib

from absl import flags

from rar_jax.performance.benchmarks import data
from rar_jax.performance.benchmarks.report import check_json, show
from rar_jax.run_folder import check_folder

_RECORDS = flags.DEFINE_integer("records", 5_000_000, "Number of records in the large synthetic data set.", 2048)
_LINES = flags.DEFINE_integer("lines", 200_000, "Number of lines in the large synthetic JSONL file.", 10)
_BATCH = flags.DEFINE_integer("batch_size", 2048, "Number of records in a batch.", lower_bound=1)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Weights of a tokenizer. Default: random weights of the published f16 size."
)
_FOLDER = flags.DEFINE_string(
    "folder",
    None,
    "Folder for the synthetic data. The data is removed at the end. Default: the system's temporary folder.",
)
_JSON = flags.DEFINE_string("json", None, "File to which the results are also written.")


def main(argv):
    del argv
    check_json(_JSON.value)
    if _FOLDER.value:
        check_folder("folder", _FOLDER.value)
    folder = pathlib.Path(_FOLDER.value) if _FOLDER.value else None
    sizes = {"records": _RECORDS.value, "lines": _LINES.value, "batch_size": _BATCH.value}
    show(data.measure(_TOKENIZER.value, folder=folder, **sizes), _JSON.value)
