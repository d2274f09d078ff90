"""Sets of images to be scored, from a folder or an .npz file. They are read in batches and never held as a whole."""

import collections
import concurrent.futures
import contextlib
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from etils import epath

from rar_jax.data.glyphs import CHARACTERS, Glyphs
from rar_jax.data.pictures import center_square, read_picture
from rar_jax.data.sources import Example, ImageFile, ImageFolder
from rar_jax.errors import UserError, naming

_THREADS = 8
# Number of images that are decoded ahead of the consumer.
_AHEAD = 64
# The errors that reading a damaged archive raises.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class ImageSet(Protocol):
    """Images of one size, in a fixed order.

    Attributes:
      name: a name for messages and reports.
      size: height and width in pixels.
      labels: int [N], the class of each image, or None if the classes are not known.
      treatment: a text that says how the stored images are changed.
    """

    name: str
    size: tuple[int, int]
    labels: np.ndarray | None
    treatment: str

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yields all images in batches uint8 [B, H, W, 3]. B is `size`, except in the last batch.

        Raises:
          UserError: an image cannot be used.
        """


class ExampleImages:
    """Encoded images. All are converted to upright RGB (`data.pictures.read_picture`)."""

    def __init__(self, name: str, examples: Sequence[Example], labels: np.ndarray | None, image_size: int | None):
        """Reads the first image, which decides the size of all.

        Args:
          name, labels: see `ImageSet`.
          examples: the images.
          image_size: side in pixels to which ADM's centre crop cuts the images. By default, images are not cut, and
            must have one size.

        Raises:
          UserError: the first image cannot be read.
        """
        self.name, self.labels, self.treatment = name, labels, "none"
        self._examples, self._image_size = examples, None
        self.size = None
        self.size = self._read(examples[0]).shape[:2]
        if image_size:
            self.cut(image_size)

    def __len__(self) -> int:
        return len(self._examples)

    def cut(self, image_size: int) -> None:
        """Sets the side to which ADM's centre crop cuts the images that are read from now on."""
        self._image_size, self.size = image_size, (image_size, image_size)
        self.treatment = f"ADM centre crop to {image_size}"

    def _read(self, example: Example) -> np.ndarray:
        with naming(example.name):
            decoded = read_picture(example.read()[0])
        image = center_square(decoded, self._image_size) if self._image_size else np.asarray(decoded)
        if self.size not in (None, image.shape[:2]):
            sizes = [f"{width} x {height}" for height, width in (image.shape[:2], self.size)]
            raise UserError(
                f"{example.name} is {sizes[0]} pixels, but {self._examples[0].name} is {sizes[1]}: cut all to one size "
                "with --image_size"
            )
        return image

    def batches(self, size: int, places: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """See `ImageSet.batches`. With `places`, only the images at these places of the set are read."""
        examples = self._examples if places is None else [self._examples[place] for place in places]
        with contextlib.closing(self._read_ahead(examples)) as images:
            while batch := list(itertools.islice(images, size)):
                yield np.stack(batch)

    def _read_ahead(self, examples: Sequence[Example]) -> Iterator[np.ndarray]:
        """Yields images in order. Threads read the next ones meanwhile."""
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            waiting = collections.deque()
            try:
                for example in examples:
                    waiting.append(threads.submit(self._read, example))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)


class FolderImages(ExampleImages):
    """The PNG, JPEG and WebP files of a folder and its subfolders, sorted by name.

    If there are several subfolders and each image is in one of them, the subfolders are classes. The images are then
    interleaved, so that every stretch of images has the classes in the proportions of the whole set (`spread_order`).
    Classes are numbered in the order of their names, but if all are characters of the glyphs, as the glyphs are.
    """

    def __init__(self, folder: epath.PathLike, image_size: int | None = None):
        """Lists the files.

        Args:
          folder: folder of the images.
          image_size: see `ExampleImages`.

        Raises:
          UserError: the folder does not exist, it has no images, or the first image cannot be read.
        """
        source = ImageFolder(folder)
        files = [source[i].name for i in range(len(source))]
        places = [epath.Path(file).relative_to(folder).parts for file in files]
        names, classes = np.unique([parts[0] for parts in places], return_inverse=True)
        labels = None
        if len(names) > 1 and all(len(parts) > 1 for parts in places):
            order = spread_order(classes)
            # A folder of glyphs may lack some characters; the others keep their labels.
            known = {name: label for label, name in enumerate(CHARACTERS)}
            numbers = [known[name] for name in names] if known.keys() >= set(names) else range(len(names))
            files, labels = [files[i] for i in order], np.array(numbers)[classes[order]]
        super().__init__(source.name, [ImageFile(file, 0) for file in files], labels, image_size)


def glyph_set(split: str, num_images: int, num_classes: int, image_size: int) -> ExampleImages:
    """Returns the first glyphs of a split, cut to a size; see `data.glyphs.Glyphs` and `ExampleImages`."""
    source = Glyphs(split, num_images, num_classes)
    examples = [source[i] for i in range(num_images)]
    return ExampleImages(source.name, examples, np.arange(num_images) % num_classes, image_size)


def spread_order(labels: np.ndarray) -> np.ndarray:
    """Returns an order in which every stretch of images has the classes in the proportions of the whole set.

    The order matters because the Inception Score averages over consecutive splits, and because some scores use only the
    first images of a set.

    Args:
      labels: int [N], sorted, 0..C-1, each class at least once.

    Returns:
      int [N], indices into `labels`. The images of a class keep their order.
    """
    counts = np.bincount(labels)
    within = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels]
    return np.argsort((within + 0.5) / counts[labels], kind="stable")


class NpzImages:
    """The images of an .npz file in the format of the ADM evaluator.

    The array arr_0 holds the images, uint8 [N, H, W, 3]. The array arr_1, if there is one, holds the labels. Grey
    images, [N, H, W] or [N, H, W, 1], get three equal channels.
    """

    treatment = "none"

    def __init__(self, path: epath.PathLike):
        """Reads the shape of the images, and the labels.

        Raises:
          UserError: the file cannot be read, has no arr_0, or its arr_0 does not hold images.
        """
        self._path = epath.Path(path)
        self.name = str(path)
        if not self._path.is_file():
            raise UserError(f"{path}: there is no such file")
        with _array(self._path, "arr_0") as found:
            if found is None:
                raise UserError(f"{path} has no arr_0, which must hold the images")
            file, shape, dtype = found
            if dtype != np.uint8:
                values = _values(file, shape, dtype)
                raise UserError(
                    f"{path}: arr_0 is {dtype}{values}; images must be uint8 from 0 to 255: "
                    "convert images in [0, 1] with np.rint(255 * images).astype(np.uint8)"
                )
            if len(shape) == 4 and shape[3] == 1:
                shape = shape[:3]
            if not all(shape) or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
                raise UserError(
                    f"{path}: arr_0 has shape {list(shape)}; images must be [N, H, W, 3], or grey [N, H, W]"
                )
        self._grey = len(shape) == 3
        if self._grey:
            self.treatment = "grey to three equal channels"
        self._count, self.size = shape[0], shape[1:3]
        self.labels = self._read_labels()

    def __len__(self) -> int:
        return self._count

    def _read_labels(self) -> np.ndarray | None:
        with _array(self._path, "arr_1") as found:
            if found is None or found[1] != (self._count,) or found[2].kind not in "iu":
                return None
            return np.frombuffer(found[0].read(), found[2])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """See `ImageSet.batches`."""
        image_bytes = int(np.prod(self.size)) * (1 if self._grey else 3)
        with _array(self._path, "arr_0") as (file, _, _):
            for start in range(0, self._count, size):
                count = min(size, self._count - start)
                data = file.read(count * image_bytes)
                if len(data) < count * image_bytes:
                    found = start + len(data) // image_bytes
                    raise UserError(f"{self._path} ends after {found} of {self._count} images: copy it again")
                images = np.frombuffer(data, np.uint8).reshape(count, *self.size, -1)
                yield np.repeat(images, 3, axis=3) if self._grey else images


@contextlib.contextmanager
def _array(path: epath.Path, name: str) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype] | None]:
    """Opens an array of an .npz file as (stream of its values, shape, dtype), or as None if there is no such array."""
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            if f"{name}.npy" not in archive.namelist():
                yield None
                return
            with archive.open(f"{name}.npy") as file:
                try:
                    version = np.lib.format.read_magic(file)
                    read = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
                    shape, fortran, dtype = getattr(np.lib.format, read)(file)
                except ValueError as error:
                    raise EOFError(error) from None
                if fortran and len(shape) > 1:
                    raise UserError(f"{path}: {name} is in Fortran order: save it again with np.ascontiguousarray")
                yield file, shape, dtype
    except _DAMAGE as error:
        raise UserError(f"{path} is not a whole .npz file ({error}): copy or download it again") from None


def _values(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Returns a text for an error message about the first values of an array that is not uint8."""
    if dtype.kind not in "fiu" or not all(shape):
        return ""
    numbers = np.frombuffer(file.read(dtype.itemsize * min(4096, int(np.prod(shape)))), dtype)
    finite = numbers[np.isfinite(numbers)]
    span = f", from {finite.min():.4g} to {finite.max():.4g}" if finite.size else ""
    return span + (", and some of it not finite" if finite.size < numbers.size else "")


def open_images(path: epath.PathLike, image_size: int | None = None) -> FolderImages | NpzImages:
    """Opens the images of a folder or of an .npz file.

    Args:
      path: path of the folder or file.
      image_size: see `FolderImages`. The images of an .npz file are not cut; they must have this size.

    Raises:
      UserError: see `FolderImages` and `NpzImages`.
    """
    if epath.Path(path).is_dir():
        return FolderImages(path, image_size)
    if not epath.Path(path).exists():
        raise UserError(f"no images in {str(path)!r}: there is no such file or folder")
    if epath.Path(path).suffix != ".npz":
        raise UserError(f"no images in {str(path)!r}: it must be a folder or an .npz file")
    images = NpzImages(path)
    if image_size and images.size != (image_size, image_size):
        height, width = images.size
        raise UserError(
            f"{path} has images of {width} x {height}, and only images of folders are cut to "
            f"--image_size={image_size}: set it to their size"
        )
    return images


def rows_at(places: np.ndarray, start: int, count: int) -> np.ndarray:
    """Returns the rows of a batch whose images are at given places of the set.

    Args:
      places: int [n], ascending places in the set.
      start: place of the batch's first image.
      count: number of images in the batch.

    Returns:
      int [m], ascending rows of the batch.
    """
    begin, end = np.searchsorted(places, (start, start + count))
    return places[begin:end] - start


def chosen(images: ImageSet, places: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields the images at given places in batches, as `ImageSet.batches` does.

    An .npz file is read from its beginning to the last place. From a folder, only these images are read.

    Args:
      images: the set.
      places: int [n], ascending places in the set.
      size: number of images per batch.
    """
    if isinstance(images, ExampleImages):
        yield from images.batches(size, places)
        return
    waiting, start = [], 0
    for batch in images.batches(size):
        waiting += list(batch[rows_at(places, start, len(batch))])
        start += len(batch)
        if len(waiting) >= size:
            yield np.stack(waiting[:size])
            waiting = waiting[size:]
        if start > places[-1]:
            break
    if waiting:
        yield np.stack(waiting)


def take(images: ImageSet, places: Sequence[int]) -> np.ndarray:
    """Returns the images at given places, in the order of `places`: uint8 [len(places), H, W, 3]."""
    places, rows = np.unique(places, return_inverse=True)
    return np.concatenate(list(chosen(images, places, _AHEAD)))[rows]
