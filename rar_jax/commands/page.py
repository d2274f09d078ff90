"""Writes index.html into the folder of launch/own_images.sh: samples, scores, curves, and the next commands.

python -m rar_jax page --run=FOLDER
"""

from absl import flags

from rar_jax.errors import UserError
from rar_jax.own_images.page import write_page

_RUN = flags.DEFINE_string("run", None, "Folder that launch/own_images.sh wrote.")


def main(argv):
    del argv
    if not _RUN.value:
        raise UserError("name the folder with --run=FOLDER")
    print(f"{write_page(_RUN.value)}: samples, scores and curves; open it in a browser")
