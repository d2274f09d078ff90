"""Checks a folder of images before anything is trained on them: what it holds, and what must be mended."""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etils import epath
from PIL import Image

from rar_jax.data.pictures import SUFFIXES, read_picture
from rar_jax.data.sources import list_images
from rar_jax.errors import UserError
from rar_jax.progress import Progress

# With fewer images, a tenth held out would be too few to tell whether training goes well.
LEAST_IMAGES = 50
# At most this many classes are named in a line, and this many unreadable files have a line of their own.
_NAMED = 3
_LISTED = 10


class Inspected(NamedTuple):
    """What is known about an image file.

    Attributes:
      name: its path.
      mode: Pillow's name of how pixels are stored, such as RGB or CMYK.
      size: width and height in pixels, upright.
      frames: number of frames; more than one in an animated file.
      reason: why the file cannot be used, or an empty text.
    """

    name: str
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    frames: int = 1
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """The result of a check.

    Attributes:
      summary: what the folder holds, a sentence.
      notes: what will be done to unusual images, a line each.
      problems: what must be mended before training, a line each.
    """

    summary: str
    notes: list[str]
    problems: list[str]


def class_folders(folder: epath.PathLike) -> dict[str, list[str]]:
    """Returns the image files of each class: the subfolders sorted by name, or the folder itself if these have none.

    Raises:
      UserError: the folder does not exist or holds no images.
    """
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise UserError(f"no images in {str(folder)!r}: there is no such folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    classes = {name: list_images(folder / name) for name in names}
    # Some programs leave empty folders among the images.
    if not any(classes.values()):
        classes = {folder.name or "images": list_images(folder)}
    if not any(classes.values()):
        raise UserError(f"no {', '.join(SUFFIXES)} files in {str(folder)!r}")
    return classes


def check_images(
    folder: epath.PathLike, image_size: int, patch: Callable[[int], int] = lambda image_size: 1
) -> ImageReport:
    """Reads every image of a folder and reports what it holds.

    Args:
      folder: class folders, or a folder of images, which are then one class.
      image_size: side in pixels of the squares that will be cut.
      patch: size of the images -> the tokenizer's downsampling, of which the size must be a multiple.

    Raises:
      UserError: the folder does not exist or holds no images.
    """
    classes = class_folders(folder)
    files = [file for each in classes.values() for file in each]
    inspected = _inspect_all(files)
    good = [each for each in inspected if not each.reason]
    problems = _class_problems(epath.Path(folder), classes, len(files))
    problems += _size_problems(good, image_size, patch)
    problems += _file_problems([each for each in inspected if each.reason])
    return ImageReport(_summary(folder, classes, good), _notes(epath.Path(folder), good), problems)


def _inspect_all(files: Sequence[str]) -> list[Inspected]:
    progress, inspected = Progress("check", len(files), unit="image"), []
    # Pillow releases the interpreter lock while it decodes.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        for each in threads.map(inspect, files):
            inspected.append(each)
            progress.update()
    progress.close()
    return inspected


def inspect(file: epath.PathLike) -> Inspected:
    """Decodes an image file and says what it is."""
    try:
        data = epath.Path(file).read_bytes()
        size = read_picture(data).size
        with epath.Path(file).open("rb") as stream, Image.open(stream) as image:
            # The further pictures that cameras put into JPEG files are no animation.
            frames = image.n_frames if image.format in ("PNG", "WEBP") else 1
            return Inspected(str(file), image.mode, size, frames)
    except (OSError, UserError) as error:
        return Inspected(str(file), reason=" ".join(str(error).split()) or type(error).__name__)


def _summary(folder: epath.PathLike, classes: dict[str, list[str]], good: Sequence[Inspected]) -> str:
    counts = [len(files) for files in classes.values()]
    text = f"{folder}: {sum(counts):,} images of {len(classes):,} classes"
    if len(classes) > 1:
        least, most = min(counts), max(counts)
        text += f", {least:,} each" if least == most else f", {least:,} to {most:,} each"
    if good:
        least, most = (pick((each.size for each in good), key=min) for pick in (min, max))
        text += f"; the smallest has {least[0]} x {least[1]} pixels, the largest {most[0]} x {most[1]}"
    return text


def _class_problems(folder: epath.Path, classes: dict[str, list[str]], count: int) -> list[str]:
    problems = []
    if count < LEAST_IMAGES:
        problems.append(f"{folder} has {count} images, too few to train on: add images, at least {LEAST_IMAGES} in all")
    if empty := [name for name, files in classes.items() if not files]:
        problems.append(f"{_folders(empty)} without {', '.join(SUFFIXES)} files: add images, or remove the folder")
    if single := [name for name, files in classes.items() if len(files) == 1]:
        problems.append(f"{_folders(single)} with a single image, so that none can be held out: add images")
    beside = [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if beside and any((folder / name).is_dir() for name in classes):
        problems.append(f"{len(beside):,} images beside the class folders, such as {beside[0]}: move them into classes")
    return problems


def _size_problems(good: Sequence[Inspected], image_size: int, patch: Callable[[int], int]) -> list[str]:
    problems = []
    if small := [each for each in good if min(each.size) < image_size]:
        least = min(small, key=lambda each: min(each.size))
        largest = next((size for size in range(min(least.size), 0, -1) if size % patch(size) == 0), None)
        choose = f"choose --image_size={largest}, or " if largest else ""
        problems.append(
            f"{len(small):,} images are smaller than --image_size={image_size} and would be enlarged, such as "
            f"{least.name} ({least.size[0]} x {least.size[1]} pixels): {choose}remove them"
        )
    if problem := patch_problem(image_size, patch(image_size)):
        problems.append(problem)
    return problems


def patch_problem(image_size: int, downsampling: int) -> str | None:
    """Returns what is wrong with an image size that is no multiple of a tokenizer's patch, or None."""
    if image_size % downsampling == 0:
        return None
    near = max(1, round(image_size / downsampling)) * downsampling
    return (
        f"--image_size={image_size} is not a multiple of {downsampling}, the downsampling of the tokenizer: choose "
        f"--image_size={near}"
    )


def _file_problems(bad: Sequence[Inspected]) -> list[str]:
    problems = [f"{each.name} cannot be read: {each.reason}; remove it, or repair it" for each in bad[:_LISTED]]
    if len(bad) > _LISTED:
        problems.append(f"{len(bad) - _LISTED:,} more images cannot be read")
    return problems


def _notes(folder: epath.Path, good: Sequence[Inspected]) -> list[str]:
    notes = []
    for what, found in (
        ("CMYK images, converted to RGB without their colour profile", [x for x in good if x.mode == "CMYK"]),
        ("animated images (only the first frame is used)", [x for x in good if x.frames > 1]),
        ("images that are not square (only the centre is used)", [x for x in good if x.size[0] != x.size[1]]),
    ):
        if found:
            notes.append(f"{what}: {len(found):,}, such as {found[0].name}")
    # epath lists no folders recursively, so that buckets have no such note.
    if others := [
        path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() not in SUFFIXES and path.is_file()
    ]:
        notes.append(f"files left out, which are not {', '.join(SUFFIXES)}: {len(others):,}, such as {min(others)}")
    return notes


def _folders(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{'class' if len(names) == 1 else 'classes'} {', '.join(map(repr, names[:_NAMED]))}{more}"
