"""Files that are there as a whole or not at all."""

import os

from etils import epath


def write_atomically(path: epath.PathLike, text: str) -> None:
    """Writes a file aside and moves it into place, so that whoever dies meanwhile leaves the old one."""
    path = epath.Path(path)
    aside = path.parent / f"{path.name}.{os.getpid()}.partial"
    aside.write_text(text)
    aside.replace(path)
