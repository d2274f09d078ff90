"""Reads and writes files of PyTorch weights: .bin and .pth files of `torch.save`, and .safetensors.

PyTorch is not needed. A .bin or .pth file holds a pickle, which could run any code; the unpickler here rebuilds tensors
and refuses everything else.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import math
import operator
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from rar_jax.errors import UserError
from rar_jax.files import written_aside

SUFFIXES = (".bin", ".pth", ".pt", ".safetensors")

# The first bytes of files from PyTorch before 1.6. Since then, `torch.save` writes zip files.
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)

# Exceptions that reading a damaged file raises.
_DAMAGED = (zipfile.BadZipFile, EOFError, KeyError, OSError, OverflowError, RuntimeError, ValueError)

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
    """A tensor in a file, which is read by `np.asarray(tensor)`."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def read_tensors(path: epath.PathLike) -> dict[str, Tensor]:
    """Returns the tensors of a file by name. Their values are read only when a tensor is converted to an array.

    Raises:
      UserError: the file does not exist, has another format, is damaged, or holds anything other than tensors.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"no weights in {str(path)!r}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")
    check_local(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: epath.Path) -> dict[str, Tensor]:
    # Imported here, as below, because few programs need it.
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
        raise UserError(f"{path} cannot be read as safetensors: {error}") from None


def read_metadata(path: epath.PathLike) -> dict[str, str]:
    """Returns the texts by name that a readable .safetensors file has besides its tensors; empty for other files."""
    if epath.Path(path).suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.metadata() or {}


def write_safetensors(
    path: epath.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors by name, and texts by name, to a file, which appears once it is complete.

    Raises:
      UserError: the file would be in a bucket, where the library cannot write.
      OSError: it cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    check_local(path)
    with written_aside(epath.Path(path)) as partial:
        # Not `ascontiguousarray`, which turns a scalar into a vector.
        arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        try:
            save_file(arrays, partial, metadata)
        except SafetensorError as error:
            # The library reports errors of the operating system by their numbers alone.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def check_local(path: epath.PathLike) -> None:
    """Raises a `UserError` if a .safetensors file is in a bucket, where the library can neither read nor write it."""
    if str(path).endswith(".safetensors") and "://" in str(path):
        raise UserError(f"{path}: .safetensors files are read and written on disks only: choose a local file")


class _StorageType(NamedTuple):
    """Stands for a PyTorch storage class while a file is unpickled."""

    name: str


class _Storage(NamedTuple):
    """Stands for a block of numbers in the file while the file is unpickled."""

    key: str
    dtype: str
    size: int


class _View(NamedTuple):
    """Stands for a tensor while a file is unpickled. It is checked once the pickle can no longer change it."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Rebuild:
    """Replaces `torch._utils._rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return _View(storage, offset, shape, strides)


class _Parameter:
    """Replaces `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors and refuses, by name, everything else that a pickle could import.

    The objects that the pickle receives have no attributes that it could set.
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
        # In files from before PyTorch 1.6, the last entry can refer to a part of another storage. PyTorch no longer
        # uses this feature.
        kind, dtype, key, _, size, *part = pid
        if kind != "storage" or type(dtype) is not _StorageType or type(key) is not str or any(part):
            # The object is not shown, because a few bytes of a pickle can nest tuples that take forever to print.
            raise pickle.UnpicklingError("it refers to an object that is not the storage of a tensor")
        return _Storage(key, dtype.name, operator.index(size))


def _unpickle(file: BinaryIO) -> Any:
    """Returns the object that is pickled at the file's position, and moves the position to the end of the pickle.

    Raises:
      Exception: the pickle is malformed; any kind of exception is possible (see `_one_error`).
    """
    begin = file.tell()
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        # The unpickler allocates a table as long as the highest number, which could exceed the memory.
        if operation.name in ("PUT", "LONG_BINPUT") and argument > number:
            raise pickle.UnpicklingError(f"it gives the number {argument} to one of its first {number} objects")
    file.seek(begin)
    return _TensorUnpickler(file).load()


class _Block(NamedTuple):
    """A block of numbers in a file: its name in error messages, its size in bytes, and a function that reads it."""

    name: str
    size: int
    read: Callable[[], bytes]


def _tensor(view: _View, path: epath.Path, blocks: Mapping[str, _Block], big_endian: bool) -> Tensor:
    """Makes a tensor after checking that it lies within its storage, and the storage within its block of the file."""
    storage = view.storage
    offset = operator.index(view.offset)
    shape, strides = (tuple(operator.index(n) for n in numbers) for numbers in (view.shape, view.strides))
    dtype = np.dtype(_STORAGE_DTYPES[storage.dtype])
    if storage.key not in blocks:
        raise UserError(f"storage {storage.key} is missing")
    block = blocks[storage.key]
    if storage.size * dtype.itemsize > block.size:
        raise UserError(f"{block.name} has {block.size} bytes, too few for {storage.size} numbers of {dtype}")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
        raise UserError(f"a tensor of shape {shape} reaches outside its storage {block.name}")
    # A tensor with a stride of 0 could fill any memory from a file of a few bytes.
    if math.prod(shape) > storage.size:
        raise UserError(f"a tensor of shape {shape} repeats the {storage.size} numbers of its storage {block.name}")

    def read():
        try:
            numbers = np.frombuffer(block.read(), dtype.newbyteorder(">") if big_endian else dtype)[offset:]
            if 0 not in shape and last - offset >= len(numbers):
                raise UserError("it became shorter after it was opened")
            in_bytes = [stride * numbers.itemsize for stride in strides]
            return np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, shape, in_bytes)).reshape(shape)
        except _DAMAGED as error:
            raise UserError(f"{path} is damaged: {block.name}: {str(error) or type(error).__name__}") from None

    return Tensor(shape, read)


def _read_torch(path: epath.Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC
    return _read_legacy(path) if legacy else _read_zip(path)


def _read_zip(path: epath.Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            infos, length = archive.infolist(), file.seek(0, io.SEEK_END)
    except _DAMAGED as error:
        raise UserError(f"{path} is not a complete zip file of torch.save ({error}): download it again") from None

    def read(member):
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return archive.read(member)

    with _one_error(path):
        # torch.save compresses nothing, and a compressed member could unpack to any size.
        if packed := [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]:
            raise UserError(f"{packed[0]} is compressed, which torch.save does not do")
        # If the sizes add up to more than the file has, members overlap or lie outside the file.
        sizes = {info.filename: info.file_size for info in infos}
        if (claimed := sum(sizes.values())) > length:
            raise UserError(f"it has {length} bytes, but claims to hold {claimed}")
        # All members are in one folder, which has the name that the file had when it was saved.
        pickled = next((name for name in sizes if name.endswith("/data.pkl")), None)
        if pickled is None:
            raise UserError("it is a zip file, but torch.save did not write it: it has no data.pkl")
        folder = pickled.removesuffix("data.pkl")
        big_endian = f"{folder}byteorder" in sizes and read(f"{folder}byteorder") == b"big"
        members = {name.removeprefix(f"{folder}data/"): name for name in sizes if name.startswith(f"{folder}data/")}
        blocks = {key: _Block(name, sizes[name], functools.partial(read, name)) for key, name in members.items()}
        views = _checked_views(_unpickle(io.BytesIO(read(pickled))))
        return {name: _tensor(view, path, blocks, big_endian) for name, view in views.items()}


def _read_legacy(path: epath.Path) -> dict[str, Tensor]:
    """Reads a file that PyTorch before 1.6 wrote.

    It has five pickles (a magic number, a version, the machine, the tensors, the order of the storages) and then the
    storages. Each storage is the count of its numbers, int64, and the numbers, little-endian on every machine.
    """

    def read(offset, size):
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    with _one_error(path), path.open("rb") as file:
        *_, views, keys = (_unpickle(file) for _ in range(5))
        views = _checked_views(views)
        dtypes = {view.storage.key: np.dtype(_STORAGE_DTYPES[view.storage.dtype]) for view in views.values()}
        blocks = {}
        for key in keys:
            size = int.from_bytes(file.read(8), "little") * dtypes[key].itemsize
            blocks[key] = _Block(f"storage {key}", size, functools.partial(read, file.tell(), size))
            file.seek(size, io.SEEK_CUR)
        end = file.tell()
        if file.seek(0, io.SEEK_END) != end:
            raise UserError(f"it has {file.tell()} bytes, but its tensors take {end}: download it again")
        return {name: _tensor(view, path, blocks, big_endian=False) for name, view in views.items()}


def _checked_views(views: Any) -> dict[str, _View]:
    """Returns the pickle's content after checking that it has tensors by name and nothing else."""
    others = [] if isinstance(views, dict) else [type(views).__name__]
    if not others:
        others = [f"{name!r} ({type(view).__name__})" for name, view in views.items() if type(view) is not _View]
        others += [f"the name {name!r}" for name in views if type(name) is not str]
    if others:
        raise UserError(f"it must hold tensors by name and nothing else; found {', '.join(others[:5])}")
    if any(type(view.storage) is not _Storage for view in views.values()):
        raise UserError("a tensor has no storage")
    return views


@contextlib.contextmanager
def _one_error(path: epath.Path) -> Iterator[None]:
    """Turns every exception into a `UserError`, because a malformed pickle can raise any exception."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{path} cannot be read: {str(error) or type(error).__name__}") from None
