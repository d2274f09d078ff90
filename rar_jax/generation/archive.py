"""Writes the .npz format of the ADM evaluator: images arr_0 uint8 [N, H, W, 3], labels arr_1 int64 [N]."""

import contextlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np
from etils import epath

from rar_jax.files import replacing

# The earliest time that a zip file can store. A fixed time makes the bytes depend on the images and labels alone.
_TIME = (1980, 1, 1, 0, 0, 0)
_PERMISSIONS = 0o644 << 16


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, shape: Sequence[int], dtype: str) -> Iterator[IO[bytes]]:
    """Opens an array of an .npz for writing. The header is already written; the caller writes the values."""
    info = zipfile.ZipInfo(f"{name}.npy", _TIME)
    info.external_attr = _PERMISSIONS
    with archive.open(info, "w", force_zip64=True) as member:
        header = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(member, header)
        yield member


def write_npz(path: epath.PathLike, shape: Sequence[int], batches: Iterable[np.ndarray], labels: np.ndarray) -> None:
    """Streams images into an uncompressed .npz file, which appears once it is complete and flushed to the disk.

    Args:
      path: the file, on a local file system.
      shape: (N, H, W, 3).
      batches: the images in order, uint8 [B, H, W, 3] each; one batch is in memory at a time.
      labels: int [N].

    Raises:
      OSError: the disk is full or broken. The incomplete file is deleted.
      RuntimeError: the batches do not have N images of this shape.
    """
    count = 0
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            with _member(archive, "arr_0", shape, "|u1") as member:
                for batch in batches:
                    if batch.dtype != np.uint8 or batch.shape[1:] != tuple(shape[1:]):
                        raise RuntimeError(f"{path}: a batch is {batch.dtype} {batch.shape}, not uint8 {tuple(shape)}")
                    member.write(np.ascontiguousarray(batch).data.cast("B"))
                    count += len(batch)
            if count != shape[0]:
                raise RuntimeError(f"{path}: the batches have {count} of {shape[0]} images")
            with _member(archive, "arr_1", labels.shape, "<i8") as member:
                member.write(labels.astype("<i8").data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
