"""Draws token records as images, and lists their classes.

python -m rar_jax show_records --records=TOKENS --tokenizer=WEIGHTS --output=grid.png
"""

from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.data.records import TokenRecords
from rar_jax.data.tokenizers import open_tokenizer
from rar_jax.errors import UserError
from rar_jax.evaluation.token_pictures import draw_records
from rar_jax.files import printable
from rar_jax.images.files import write_png

_RECORDS = flags.DEFINE_string("records", None, "Folder of token records.")
_TOKENIZER, _IMAGE_SIZE = shared_flags.define_tokenizer()
_NUM = flags.DEFINE_integer("num", 32, "Number of records, evenly spaced over all.", lower_bound=1)
_OUTPUT = shared_flags.define_picture()


def main(argv):
    del argv
    cli.keep_compiled_programs()
    if not _RECORDS.value or not _TOKENIZER.value:
        raise UserError("name a folder of records with --records and their tokenizer with --tokenizer=WEIGHTS")
    shared_flags.check_picture(_OUTPUT.value)
    records, tokenizer = TokenRecords(_RECORDS.value), open_tokenizer(_TOKENIZER.value, _IMAGE_SIZE.value)
    picture, classes = draw_records(records, tokenizer, _NUM.value)
    write_png(_OUTPUT.value, picture)
    print(f"{_OUTPUT.value}: {sum(map(len, classes))} of {records.num_records} records; their classes, row by row:")
    for row in classes:
        print("  " + printable(", ".join(row)))
