"""Names of classes, and the lookup of classes by name."""

import difflib
import functools
import importlib.resources
import numbers
import re
from collections.abc import Sequence

from etils import epath

from rar_jax.config import Config
from rar_jax.data import digits, glyphs
from rar_jax.data.records import read_description
from rar_jax.errors import UserError

_NEAREST = 5


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Returns WordNet id -> name for the 1,000 classes of ImageNet, in the order of their labels.

    If two classes share a name, a word in brackets tells them apart.
    """
    lines = importlib.resources.files("rar_jax.data").joinpath("imagenet_classes.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def class_names(config: Config) -> tuple[str, ...] | None:
    """Returns the names of a model's classes in the order of their labels, or None if they are not known.

    The names come from the token records that the model was trained on, if these can be read, or from an embedded data
    set. WordNet ids are replaced by ImageNet's names. If no names are found, 1,000 classes are assumed to be
    ImageNet's.
    """
    number = config.model.num_classes
    names = ()
    if config.data.name == "digits":
        names = digits.CLASS_NAMES
    elif config.data.name == "glyphs":
        names = glyphs.class_names(number)
    elif config.data.path:
        try:
            names = read_description(epath.Path(config.data.path)).class_names
        except (UserError, OSError):  # The machine that samples may not have the records.
            names = ()
        if names == tuple(map(str, range(number))):  # Imported from JSONL without a list of classes.
            names = ()
    imagenet = imagenet_classes()
    if len(names) == number:
        return tuple(imagenet.get(name, name) for name in names)
    return tuple(imagenet.values()) if number == len(imagenet) else None


def class_label(index: int, names: Sequence[str] | None) -> str:
    """Returns the caption for images of a class: its index and, if it has one, its name."""
    return f"{index}" if names is None or names[index] == f"{index}" else f"{index} {names[index]}"


def class_text(index: int, names: Sequence[str] | None) -> str:
    """Returns the text by which `find_classes` finds a class: its index, unless another class has it for a name."""
    return names[index] if names is not None and f"{index}" in names else f"{index}"


def find_classes(wanted: int | str | Sequence[int | str], names: Sequence[str] | None) -> list[int]:
    """Finds classes by name or by index.

    Args:
      wanted: one class or several: names (upper and lower case are the same), WordNet ids of ImageNet, and indices, as
        numbers or as text. A text that is both a name and an index is the name, because folders of classes can have
        numbers for names.
      names: the names of all classes, or None if they are not known.

    Returns:
      The indices. Whether the model has classes with these indices is not checked.

    Raises:
      UserError: a name matches no class, or more than one. The message lists the nearest names.
    """
    found = []
    for name in [wanted] if isinstance(wanted, str | numbers.Integral) else wanted:
        if not isinstance(name, str):
            found.append(int(name))
        elif names is not None and name.strip() in names:
            found.append(names.index(name.strip()))
        elif re.fullmatch(r"\s*-?\d+\s*", name):
            found.append(int(name))
        elif names is None:
            raise UserError(f"class {name!r}: the names of this model's classes are not known; give its index")
        else:
            found.append(_find(imagenet_classes().get(name, name), names))
    return found


def _find(name: str, names: Sequence[str]) -> int:
    key = _plain(name)
    plain = [_plain(known) for known in names]
    matches = [i for i, known in enumerate(plain) if key == known]
    matches = matches or [i for i, known in enumerate(plain) if key == re.sub(r" \(.*\)$", "", known)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"class {name!r} can be {_listed(matches, names)}: give one of these names or indices")
    near = [plain.index(close) for close in difflib.get_close_matches(key, plain, _NEAREST)]
    near += [i for i, known in enumerate(plain) if key and key in known and i not in near]
    known = (
        f"the nearest are {_listed(near[:_NEAREST], names)}" if near else f"give an index from 0 to {len(names) - 1}"
    )
    raise UserError(f"no class is named {name!r}; {known}")


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _listed(indices: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(class_label(i, names) for i in indices)
