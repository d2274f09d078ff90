import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.evaluation.references import check_statistics_file, read_statistics, write_statistics
from rar_jax.evaluation.statistics import gaussian


def test_statistics_are_written_in_adms_format_and_read_back(tmp_path):
    found = {
        kind: gaussian(np.random.default_rng(i).standard_normal((9, 4))) for i, kind in enumerate(("pool", "spatial"))
    }
    path = tmp_path / "new" / "reference.npz"
    write_statistics(path, found)
    with np.load(path) as file:
        assert set(file.files) == {"mu", "sigma", "mu_s", "sigma_s"}
        np.testing.assert_array_equal(file["sigma_s"], found["spatial"].sigma)
    read = read_statistics(path)
    for kind in found:
        np.testing.assert_array_equal(read[kind].mu, found[kind].mu)
        np.testing.assert_array_equal(read[kind].sigma, found[kind].sigma)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "has only one of mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"\(3,\) and sigma \(3, 4\) must be"),
        ({"mu_s": np.full(2, np.nan), "sigma_s": np.eye(2)}, "mu_s or sigma_s is not finite"),
    ],
)
def test_unusable_statistics_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "a.npz")


def test_statistics_replace_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    check_statistics_file("out", path)
    write_statistics(path, {"pool": gaussian(np.eye(9))})
    check_statistics_file("out", path)
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8), mu=np.zeros(3))
    with pytest.raises(UserError, match=r"--out=.*a\.npz exists and holds no statistics \(arr_0\)"):
        check_statistics_file("out", path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"exists and holds no statistics \(it is damaged"):
        check_statistics_file("out", path)
    (tmp_path / "folder.npz").mkdir()
    for refused in ("a.txt", "folder.npz"):
        with pytest.raises(UserError, match=rf"--out=.*{refused} must be an \.npz file"):
            check_statistics_file("out", tmp_path / refused)


@pytest.mark.parametrize("kept", [0, 20, 700])
def test_truncated(tmp_path, kept):
    write_statistics(tmp_path / "a.npz", {"pool": gaussian(np.eye(9))})
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:kept])
    with pytest.raises(UserError, match=r"not a whole \.npz file"):
        read_statistics(tmp_path / "a.npz")
    with pytest.raises(UserError, match="there is no such file"):
        read_statistics(tmp_path / "b.npz")


def test_every_damage_is_one_error(tmp_path):
    """Changed bytes anywhere, an .npy file and a text: whatever the libraries raise, the message is the same."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, mu=np.zeros(3), sigma=np.eye(3))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    np.save(tmp_path / "array.npy", np.zeros(3))
    damaged = [(tmp_path / "array.npy").read_bytes(), b"hello"]
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
        damaged.append(data.tobytes())
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read_statistics(path)
        except UserError:
            refused += 1
    assert refused > 200


def test_a_failed_write_leaves_the_old_statistics(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_statistics(path, {"pool": gaussian(np.eye(9))})
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        write_statistics(path, {"pool": gaussian(np.eye(5))})
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a.npz"]
