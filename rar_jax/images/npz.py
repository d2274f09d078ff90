"""The .npz format of the ADM evaluator, written as images come: arr_0 uint8 [N, H, W, 3], arr_1 int64 [N], labels.

An .npz is a zip file of .npy files. Uncompressed, and of a size known from the beginning, every image has its place in
it; only the checksum in front and the directory at the end wait for the last. The structures are those of PKWARE's
APPNOTE.TXT (4.3 and 4.5.3), always in their zip64 form, as `numpy.savez` has them in front of an array.
"""

import io
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from rar_jax.errors import UserError

_VERSION = 45
# Midnight of 1980-01-01, the earliest there is: an archive depends on what is in it alone.
_TIME, _DATE = 0, 0x21
_IN_ZIP64 = 0xFFFFFFFF
_CRC_OFFSET = 14
_BLOCK = 2**24


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _file_header(name: bytes, size: int, crc: int) -> bytes:
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    fixed = struct.pack(
        "<4s5H3I2H", b"PK\3\4", _VERSION, 0, 0, _TIME, _DATE, crc, _IN_ZIP64, _IN_ZIP64, len(name), len(extra)
    )
    return fixed + name + extra


def _directory(files: list[tuple[bytes, int, int, int]], offset: int) -> bytes:
    """The end of a zip file from its files' (name, size, crc, offset)."""
    entries = b""
    for name, size, crc, begin in files:
        extra = struct.pack("<HHQQQ", 1, 24, size, size, begin)
        # Made on Unix, readable by all.
        entries += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 3 << 8 | _VERSION, _VERSION, 0, 0, _TIME, _DATE, crc, _IN_ZIP64, _IN_ZIP64,
            len(name), len(extra), 0, 0, 0, 0o644 << 16, _IN_ZIP64,
        )  # fmt: skip
        entries += name + extra
    count = len(files)
    end64 = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", 44, 3 << 8 | _VERSION, _VERSION, 0, 0, count, count, len(entries), offset
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, offset + len(entries), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(entries), _IN_ZIP64, 0)
    return entries + end64 + locator + end


class ImageArchive:
    """An .npz in the making, beside its name as .partial until it is whole: images are appended in order.

    How long the file is says how many images it has, so that whoever is killed goes on where they were.
    """

    def __init__(self, path: str | os.PathLike, image_shape: tuple[int, int, int], labels: np.ndarray):
        """Begins nothing yet.

        Args:
          path: of the .npz, on a file system that can append.
          image_shape: (H, W, 3).
          labels: int64 [N], of all images.
        """
        self.path = pathlib.Path(path)
        self._partial = self.path.with_name(f"{self.path.name}.partial")
        self._shape = (len(labels), *image_shape)
        self._labels = np.asarray(labels, "<i8")
        self._image_size = int(np.prod(image_shape))
        self._npy_header = _npy_header(self._shape, np.dtype(np.uint8))
        self._size = len(self._npy_header) + len(labels) * self._image_size
        # Without the checksum, of which there is none before the end.
        self._header = _file_header(b"arr_0.npy", self._size, 0) + self._npy_header
        self._file = None
        self._crc = 0

    def __len__(self) -> int:
        """Images that are whole in it, in whichever process it is asked."""
        try:
            length = self._partial.stat().st_size
        except FileNotFoundError:  # Finished, or not begun.
            return len(self._labels) if self.path.exists() else 0
        return max(0, min(length - len(self._header), len(self._labels) * self._image_size)) // self._image_size

    def open(self, whole: int) -> None:
        """Begins to write, or goes on.

        Args:
          whole: images that belong together; where the last ones are not so many, they are dropped.

        Raises:
          UserError: the file in the making is of another shape.
        """
        count = len(self)
        if count < len(self._labels):
            count -= count % whole
        self._file = file = open(self._partial, "r+b" if self._partial.exists() else "w+b", buffering=0)
        begun = file.read(len(self._header))
        if count and (begun[:_CRC_OFFSET], begun[_CRC_OFFSET + 4 :]) != (
            self._header[:_CRC_OFFSET],
            self._header[_CRC_OFFSET + 4 :],
        ):
            raise UserError(f"{self._partial} is not of images {self._shape}: remove it")
        file.truncate(len(self._header) + count * self._image_size)
        file.seek(0)
        self._write(self._header)
        self._crc = zlib.crc32(self._npy_header)
        for block in self._blocks(count):
            self._crc = zlib.crc32(block, self._crc)

    def append(self, images: np.ndarray) -> None:
        """Writes the next images, uint8 [B, H, W, 3]."""
        data = np.ascontiguousarray(images).reshape(-1)
        self._write(data)
        self._crc = zlib.crc32(data, self._crc)

    def finish(self) -> None:
        """Writes what is missing around the images, all of which are there, and gives the file its name.

        Raises:
          RuntimeError: they are not all there.
        """
        if self._file.tell() != len(self._header) + len(self._labels) * self._image_size:
            raise RuntimeError(f"{self._partial} has {len(self)} of {len(self._labels)} images")
        labels = _npy_header(self._labels.shape, self._labels.dtype) + self._labels.tobytes()
        crc = zlib.crc32(labels)
        begin = self._file.tell()
        self._write(_file_header(b"arr_1.npy", len(labels), crc) + labels)
        files = [(b"arr_0.npy", self._size, self._crc, 0), (b"arr_1.npy", len(labels), crc, begin)]
        self._write(_directory(files, self._file.tell()))
        self._file.seek(_CRC_OFFSET)
        self._write(struct.pack("<I", self._crc))
        os.fsync(self._file.fileno())
        self.close()
        self._partial.replace(self.path)

    def close(self) -> None:
        """Stops writing; what is there stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Images by number, uint8 [B, H, W, 3], of the finished file."""
        images = np.empty((len(numbers), *self._shape[1:]), np.uint8)
        with open(self.path, "rb") as file:
            for image, number in zip(images, numbers, strict=True):
                file.seek(len(self._header) + int(number) * self._image_size)
                image[:] = np.frombuffer(file.read(self._image_size), np.uint8).reshape(image.shape)
        return images

    def _blocks(self, count: int) -> Iterator[bytes]:
        """The bytes of the first images, from where the file is read; it ends behind them."""
        left = count * self._image_size
        while left:
            block = self._file.read(min(left, _BLOCK))
            if not block:
                raise OSError(f"{self._partial} became shorter while it was read: another process writes it")
            left -= len(block)
            yield block

    def _write(self, data: bytes | np.ndarray) -> None:
        # Without a buffer a full disk shows here, and a write may take only a part.
        data = memoryview(data).cast("B")
        while data:
            data = data[self._file.write(data) :]
