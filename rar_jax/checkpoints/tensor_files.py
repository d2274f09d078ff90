"""Weights as PyTorch users share them: .bin and .pth (zip files of `torch.save`) and .safetensors.

Neither needs PyTorch. A .bin or .pth file holds a pickle, which could run anything; ours may rebuild tensors and
nothing else.
"""

import collections
import dataclasses
import functools
import io
import operator
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from rar_jax.files import aside

SUFFIXES = (".bin", ".pth", ".pt", ".safetensors")

_STORAGE_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, read when asked: `np.asarray(tensor)`."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def read_tensors(path: epath.PathLike) -> dict[str, Tensor]:
    """The tensors of a file by name; only their names and shapes are read yet.

    Raises:
      ValueError: the file is not there, is not of these kinds, is damaged, or holds something else than tensors.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(f"no weights in {str(path)!r}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: epath.Path) -> dict[str, Tensor]:
    # Only here is it needed.
    from safetensors import SafetensorError, safe_open

    def read(name):
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)

    try:
        with safe_open(path, framework="np") as file:
            return {
                name: Tensor(tuple(file.get_slice(name).get_shape()), functools.partial(read, name))
                for name in file.keys()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def write_safetensors(path: epath.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name, aside first: a file of this name is whole."""
    # Only here is it needed.
    from safetensors.numpy import save_file

    path = epath.Path(path)
    partial = aside(path)
    # Not ascontiguousarray, which makes a vector of a scalar.
    save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, partial)
    partial.replace(path)


class _StorageType(NamedTuple):
    """What the pickle sees of a storage class."""

    name: str


class _Storage(NamedTuple):
    """What the pickle sees of a block of numbers in the zip file."""

    key: str
    dtype: str
    size: int


class _View(NamedTuple):
    """What the pickle sees of a tensor. Checked when the pickle has ended and can change nothing any more."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Rebuild:
    """`torch._utils._rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return _View(storage, offset, shape, strides)


class _Parameter:
    """`torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors and refuses, by name, everything else that a pickle could import.

    All that it hands to the pickle has no attributes that could be set.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Parameter()
        if module == "torch" and name in _STORAGE_DTYPES:
            return _StorageType(name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a tensor and is not run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or type(dtype) is not _StorageType:
            raise pickle.UnpicklingError(f"it holds a {kind!r} of {dtype!r}, which is not a tensor")
        return _Storage(str(key), dtype.name, int(size))


def _tensor(view: _View, path: epath.Path, folder: str, sizes: Mapping[str, int], big_endian: bool) -> Tensor:
    """A tensor within the bounds of its storage, which is within its member of the zip file."""
    storage = view.storage
    if type(storage) is not _Storage:
        raise ValueError("a tensor has no storage")
    offset = operator.index(view.offset)
    shape, strides = (tuple(operator.index(n) for n in numbers) for numbers in (view.shape, view.strides))
    dtype = np.dtype(_STORAGE_DTYPES[storage.dtype])
    member = f"{folder}data/{storage.key}"
    if member not in sizes:
        raise ValueError(f"{member} is missing")
    if storage.size * dtype.itemsize > sizes[member]:
        raise ValueError(f"{member} has {sizes[member]} bytes, and {storage.size} numbers of {dtype} are asked for")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage {member}")

    def read():
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                numbers = np.frombuffer(archive.read(member), dtype.newbyteorder(">") if big_endian else dtype)[offset:]
        except (KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged: {member}: {error}") from None
        if 0 not in shape and last - offset >= len(numbers):
            raise ValueError(f"{path} is damaged: {member} is shorter than it was")
        in_bytes = [stride * numbers.itemsize for stride in strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, shape, in_bytes)).reshape(shape)

    return Tensor(shape, read)


def _read_torch(path: epath.Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            # The one folder that all members are in is named after the file when it was saved.
            pickled = next((name for name in sizes if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise ValueError(f"{path} is a zip file, but not of torch.save: it has no data.pkl")
            folder = pickled.removesuffix("data.pkl")
            # torch.save compresses nothing; what is compressed could unpack to any size.
            if packed := [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"{path} is not of torch.save: {packed[0]} is compressed")
            byteorder = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in sizes else b"little"
            data = archive.read(pickled)
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a whole zip file of torch.save ({error}): download it again, or, if PyTorch before 1.6 "
            "wrote it, load and save it with a newer one"
        ) from None

    try:
        views = _TensorUnpickler(io.BytesIO(data)).load()
        others = [] if isinstance(views, dict) else [type(views).__name__]
        if not others:
            others = [f"{name!r} ({type(view).__name__})" for name, view in views.items() if type(view) is not _View]
            others += [f"the name {name!r}" for name in views if type(name) is not str]
        if not others:
            return {name: _tensor(view, path, folder, sizes, byteorder == b"big") for name, view in views.items()}
    except Exception as error:  # A pickle is a program: made badly, it can raise anything.
        raise ValueError(f"{path} is not read: {str(error) or type(error).__name__}") from None
    raise ValueError(f"{path} must hold tensors by name and nothing else; found {', '.join(others[:5])}")
