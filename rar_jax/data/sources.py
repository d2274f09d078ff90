"""Sources of images: class folders and TFDS data sets. `glyphs.Glyphs` is another one."""

import dataclasses
import functools
import logging
import os
import textwrap
from collections.abc import Sequence
from typing import Any, Protocol

from etils import epath

from rar_jax.data.pictures import SUFFIXES
from rar_jax.errors import UserError

_log = logging.getLogger(__name__)


class Example(Protocol):
    """One image of a source, small enough to be sent to another process.

    Attributes:
      name: a name for messages.
    """

    name: str

    def read(self) -> tuple[bytes, int]:
        """Returns the encoded image and its label. Raises OSError if it cannot be read."""


class Source(Protocol):
    """Images in a fixed order.

    Attributes:
      name: a name for messages.
      class_names: the name of each class, in the order of the labels.
    """

    name: str
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image stored in a file."""

    name: str
    label: int

    def read(self) -> tuple[bytes, int]:
        """See `Example.read`."""
        return epath.Path(self.name).read_bytes(), self.label


class ClassFolders:
    """A folder that holds a folder of images for each class, as for torchvision's ImageFolder."""

    def __init__(self, folder: epath.PathLike, class_names: Sequence[str] | None = None):
        """Lists the files.

        Args:
          folder: folder that holds the class folders. Images may also lie in subfolders of these.
          class_names: names of the class folders in the order of the labels. A listed folder may be empty, with a
            warning. By default, all folders are classes, sorted by name, and each must have images.

        Raises:
          UserError: there are no class folders or no images; a listed class has no folder; or no names are given and a
            class has no images.
        """
        folder = epath.Path(folder)
        if not folder.is_dir():
            raise UserError(f"no images in {str(folder)!r}: there is no such folder")
        given = class_names is not None
        if not given:
            class_names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if not class_names:
            raise UserError(f"no images in {str(folder)!r}: it must have a folder of images for each class")
        self.name = str(folder)
        self.class_names = tuple(class_names)
        self._files, empty = [], []
        for label, name in enumerate(class_names):
            if not (folder / name).is_dir():
                raise UserError(f"class {label}, {name!r}, has no folder in {folder}")
            files = list_images(folder / name)
            if not files:
                if not given:
                    raise UserError(f"class {label}, {folder / name}, has no {', '.join(SUFFIXES)} files")
                empty.append(name)
            self._files += [(file, label) for file in files]
        if not self._files:
            raise UserError(f"no {', '.join(SUFFIXES)} files in the class folders of {folder}")
        if empty:
            _log.warning("%d classes have no images in %s: %s", len(empty), folder, ", ".join(empty))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImageFile:
        return ImageFile(*self._files[index])


class ImageFolder:
    """The images of a folder and its subfolders, without classes."""

    class_names = ("",)

    def __init__(self, folder: epath.PathLike):
        """Lists the files.

        Raises:
          UserError: the folder does not exist, or it has no images.
        """
        folder = epath.Path(folder)
        self.name = str(folder)
        self._files = list_images(folder) if folder.is_dir() else []
        if not self._files:
            raise UserError(f"no {', '.join(SUFFIXES)} files in {str(folder)!r}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> ImageFile:
        return ImageFile(self._files[index], 0)


def check_outside(images: epath.PathLike, named: str, folder: epath.PathLike) -> None:
    """Raises a `UserError` if a folder to write lies in a folder of images, where its files would become images.

    Args:
      images: folder of the images.
      named: what the user names the folder to write with, such as --output.
      folder: the folder to write.
    """
    # A path of a bucket does not lie in a local folder.
    if ("://" in str(images)) != ("://" in str(folder)):
        return
    inside, outside = (epath.Path(path if "://" in str(path) else os.path.realpath(path)) for path in (folder, images))
    if outside in (inside, *inside.parents):
        raise UserError(f"{named}={folder} lies in the images' folder {images}: choose a folder outside it")


def list_images(folder: epath.Path) -> list[str]:
    """Returns the paths of the image files in a folder and its subfolders, sorted."""
    files = []
    for path in sorted(folder.iterdir()):
        # Names are checked first, because asking the file system about a million files takes minutes.
        if path.suffix.lower() in SUFFIXES:
            files.append(str(path))
        elif path.is_dir():
            files += list_images(path)
    return files


@functools.cache
def _open_tfds(name: str, split: str, data_dir: str | None) -> Any:
    """Opens a prepared data set, once in each process. Its images are not decoded."""
    # Imported here because it is slow to import and nothing else needs it.
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir)
    return builder, builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


@dataclasses.dataclass(frozen=True)
class TfdsExample:
    """An image of a TFDS data set."""

    dataset: tuple[str, str, str | None]
    index: int

    @property
    def name(self) -> str:
        return f"{self.dataset[0]}/{self.dataset[1]}[{self.index}]"

    def read(self) -> tuple[bytes, int]:
        """See `Example.read`."""
        _, data_source = _open_tfds(*self.dataset)
        example = data_source[self.index]
        return example["image"], int(example["label"])


class TfdsImages:
    """A TFDS data set with the features image and label, prepared as ArrayRecord. It needs no TensorFlow."""

    def __init__(self, name: str, split: str, data_dir: str | None = None):
        """Opens the data set.

        Args:
          name: name of the data set in TFDS, such as imagenet2012.
          split: name of the split, such as train or train[:1%].
          data_dir: folder in which it was prepared. The default is that of TFDS.

        Raises:
          UserError: the data set does not exist, is not prepared as ArrayRecord, or lacks the split or a feature.
        """
        try:
            builder, self._data_source = _open_tfds(name, split, data_dir)
            self._length = len(self._data_source)
        # TFDS raises many kinds of errors for wrong names, versions, splits and formats.
        except Exception as error:
            raise UserError(
                f"TFDS set {name!r}, split {split!r}, in data_dir {data_dir!r} cannot be opened: "
                f"{textwrap.shorten(str(error), 300)}; if it is not prepared, run tfds.builder({name!r}, "
                "file_format='array_record').download_and_prepare()"
            ) from None
        features = builder.info.features
        if missing := [feature for feature in ("image", "label") if feature not in features]:
            raise UserError(f"TFDS set {name!r} has no feature {' and '.join(missing)}, only {', '.join(features)}")
        if not hasattr(features["label"], "names"):
            raise UserError(f"TFDS set {name!r} has the labels {features['label']}, not a ClassLabel: use another set")
        self.name = f"TFDS {name}, {split}"
        self.class_names = tuple(features["label"].names)
        self._dataset = (name, split, data_dir)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> TfdsExample:
        return TfdsExample(self._dataset, index)
