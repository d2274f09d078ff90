"""Reads and writes statistics of features in the format of the ADM evaluator's reference batches (.npz)."""

import zipfile
import zlib

import numpy as np
from etils import epath

from rar_jax.errors import UserError
from rar_jax.evaluation.statistics import Gaussian
from rar_jax.files import replacing

# The arrays in the file with the mean and covariance of the pool features (FID) and the spatial features (sFID).
_NAMES = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# The errors that `numpy.load` raises for damaged files and other formats; a TypeError stands for an .npy file.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def read_statistics(path: epath.PathLike) -> dict[str, Gaussian]:
    """Reads the statistics that are stored in an .npz file.

    Returns:
      kind -> statistics, for the kinds that the file has: pool (FID) and spatial (sFID). It is empty for a file that
      has only images.

    Raises:
      UserError: the file cannot be read, has a mean without its covariance or the reverse, or has shapes that do not
        match or values that are not finite.
    """
    path = epath.Path(path)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    try:
        with file, np.load(file) as arrays:
            stored = {name: arrays[name] for pair in _NAMES.values() for name in pair if name in arrays.files}
    except _DAMAGE as error:
        raise UserError(f"{path} is not a whole .npz file ({error}): copy or download it again") from None
    found = {}
    for kind, (mean, covariance) in _NAMES.items():
        if (mean in stored) != (covariance in stored):
            raise UserError(f"{path} has only one of {mean} and {covariance}: an ADM reference has both")
        if mean in stored:
            mu, sigma = (np.asarray(stored[name], np.float64) for name in (mean, covariance))
            if mu.ndim != 1 or sigma.shape != mu.shape * 2:
                raise UserError(f"{path}: {mean} {mu.shape} and {covariance} {sigma.shape} must be (F,) and (F, F)")
            if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
                raise UserError(f"{path}: {mean} or {covariance} is not finite: make the statistics again")
            found[kind] = Gaussian(mu, sigma)
    return found


def check_statistics_file(flag: str, path: epath.PathLike) -> None:
    """Raises a `UserError` that names the flag if a file is no .npz, or if statistics would replace something else."""
    path = epath.Path(path)
    if path.suffix != ".npz" or path.is_dir():
        raise UserError(f"--{flag}={path} must be an .npz file")
    if not path.exists():
        return
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            others = sorted(set(arrays.files) - {name for pair in _NAMES.values() for name in pair})
    except PermissionError:
        # One of the errors in `_DAMAGE`, but it says nothing about the contents.
        raise
    except _DAMAGE:
        others = ["it is damaged"]
    if others:
        raise UserError(f"--{flag}={path} exists and holds no statistics ({others[0]}): choose another name")


def write_statistics(path: epath.PathLike, statistics: dict[str, Gaussian]) -> None:
    """Writes statistics to an .npz file, as `read_statistics` returns them. Creates the folder if necessary."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for kind, found in statistics.items():
        mean, covariance = _NAMES[kind]
        arrays |= {mean: found.mu, covariance: found.sigma}
    with replacing(path) as file:
        np.savez(file, **arrays)
