import contextlib
import io
import pickle
import random
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import DATA
from safetensors.numpy import save_file

from rar_jax.checkpoints.tensor_files import read_tensors
from rar_jax.errors import UserError


def torch_file(path, data_pkl, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize("file", ["tensors.pth", "tensors_legacy.pth"])
def test_files_of_pytorch_are_read(file):
    """PyTorch 2.13 wrote them, the second one in the format of PyTorch before 1.6."""
    tensors = read_tensors(DATA / file)
    expected = {
        "p": np.arange(6, dtype=np.float32).reshape(2, 3),  # A torch.nn.Parameter.
        "t": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # Not contiguous.
        "v": np.array([2, 3, 4]),  # A view into a larger storage.
        "b": np.array([1.5, 1.5]),  # bfloat16.
        "h": np.ones(2, np.float16),
        "s": np.array(3, np.float32),
        "e": np.zeros((0, 3), np.float32),
        "bool": np.array([True, False]),
    }
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        read = np.asarray(tensors[name])
        assert tensors[name].shape == read.shape
        np.testing.assert_array_equal(read.astype(array.dtype), array)
    assert np.asarray(tensors["b"]).dtype.name == "bfloat16" and np.asarray(tensors["h"]).dtype == np.float16


@pytest.mark.parametrize("as_zip", [True, False])
def test_files_are_read_as_pytorch_reads_them(tmp_path, as_zip):
    torch = pytest.importorskip("torch")
    tensors = torch.nn.Conv2d(3, 5, 3).state_dict()
    torch.save(tensors, tmp_path / "conv.bin", _use_new_zipfile_serialization=as_zip)
    ours = read_tensors(tmp_path / "conv.bin")
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.asarray(ours[name]), tensor.numpy())


def test_safetensors(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.float16)}
    save_file(arrays, tmp_path / "w.safetensors")
    tensors = read_tensors(tmp_path / "w.safetensors")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(np.asarray(tensors[name]), array)


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').write_text('')",)


class Named:
    """Pickles as the global `module.name` called with `arguments`."""

    def __init__(self, module, name, *arguments):
        self.text = f"c{module}\n{name}\n".encode()
        self.arguments = arguments

    def pickled(self):
        arguments = b"".join(pickle.dumps(a, protocol=0)[:-1] for a in self.arguments)
        return self.text + b"(" + arguments + b"tR."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            pickle.dumps({"weight": Evil()}),
            "asks for (builtins|__builtin__).exec, which is not a tensor and is not run",
        ),
        (Named("os", "system", "touch ran").pickled(), "asks for os.system"),
        (Named("torch.storage", "_load_from_bytes", b"x").pickled(), "asks for torch.storage._load_from_bytes"),
        (Named("torch._utils", "_rebuild_tensor_v2", 1, 2, (3,), (1,)).pickled(), "found _View"),
        (Named("collections", "OrderedDict.fromkeys", [1]).pickled(), r"asks for collections.OrderedDict\.fromkeys"),
        (pickle.dumps({"step": 3, "name": "x"}), r"found 'step' \(int\), 'name' \(str\)"),
        (pickle.dumps([1]), "found list"),
        (b"not a pickle", "cannot be read"),
    ],
)
def test_nothing_but_tensors_is_rebuilt_and_nothing_is_run(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read_tensors(torch_file(tmp_path / "evil.bin", data))
    # The legacy format has five pickles; this one is the third.
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    (tmp_path / "legacy.bin").write_bytes(magic + data + pickle.dumps({}, 2) + pickle.dumps([], 2))
    with contextlib.suppress(ValueError):
        assert read_tensors(tmp_path / "legacy.bin") == {}
    assert not (tmp_path / "ran").exists()


def tensor_pickle(offset, shape, strides, size=6, key="0", name="w"):
    """Returns the pickle that torch.save writes for {name: tensor}."""
    buffer = io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if value == "the storage":
                self.write(b"(" + pickle.dumps("storage", 2)[2:-1] + b"ctorch\nFloatStorage\n")
                self.write(pickle.dumps(key, 2)[2:-1] + pickle.dumps("cpu", 2)[2:-1] + b"K" + bytes([size]) + b"tQ")
            return None

        def save(self, value, *args, **kwargs):
            if value == "the storage":
                return self.persistent_id(value)
            return super().save(value, *args, **kwargs)

    pickler = Pickler(buffer, 2)
    pickler.write(b"\x80\x02}")
    pickler.save(name)
    pickler.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
    for value in ("the storage", offset, shape, strides, False, None):
        pickler.save(value)
    pickler.write(b"tRs.")
    return buffer.getvalue()


STORAGE = np.arange(6, dtype="<f4").tobytes()


def test_offset_and_strides(tmp_path):
    path = torch_file(tmp_path / "w.pth", tensor_pickle(1, (2, 2), (1, 2)), **{"0": STORAGE})
    np.testing.assert_array_equal(np.asarray(read_tensors(path)["w"]), [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (7,), (1,)), (3, (2, 2), (2, 1)), (-1, (2,), (1,)), (5, (2,), (-1,)), (0, (2, 2), (5, 1))],
)
def test_a_tensor_cannot_reach_outside_its_storage(tmp_path, offset, shape, strides):
    path = torch_file(tmp_path / "w.pth", tensor_pickle(offset, shape, strides), **{"0": STORAGE})
    with pytest.raises(UserError, match="reaches outside its storage"):
        read_tensors(path)


@pytest.mark.parametrize(("shape", "strides"), [((10**13,), (0,)), ((2, 2, 2), (1, 1, 1)), ((7, 1), (0, 0))])
def test_a_tensor_is_not_larger_than_its_storage(tmp_path, shape, strides):
    path = torch_file(tmp_path / "w.pth", tensor_pickle(0, shape, strides), **{"0": STORAGE})
    with pytest.raises(UserError, match=r"repeats the 6 numbers of its storage archive/data/0"):
        read_tensors(path)


def test_an_empty_tensor_of_an_impossible_shape_is_damage(tmp_path):
    path = torch_file(tmp_path / "w.pth", tensor_pickle(0, (0, 2**70), (1, 1)), **{"0": STORAGE})
    with pytest.raises(UserError, match=r"w\.pth is damaged: archive/data/0: "):
        np.asarray(read_tensors(path)["w"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # A memo with 2**27 pointers would take a gigabyte.
        (b"\x80\x02}r\xff\xff\xff\x07.", "gives the number 134217727 to one of its first 2 objects"),
        (b"\x80\x02}p134217727\n.", "gives the number 134217727 to one of its first 2 objects"),
        (b"\x80\x05\x96" + (2**31).to_bytes(8, "little") + b".", "expected 2147483648 bytes in a bytearray8"),
    ],
)
def test_no_memory_is_allocated_for_data_that_is_missing(tmp_path, data, message):
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        read_tensors(torch_file(tmp_path / "r.bin", data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_members_larger_than_the_file_are_refused(tmp_path):
    path = torch_file(tmp_path / "c.bin", tensor_pickle(0, (6,), (1,)), **{"0": STORAGE})
    data = bytearray(path.read_bytes())
    # The sizes of the member in the directory at the end of the file.
    entry = data.rindex(b"archive/data/0") - 46
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"it has {len(data)} bytes, but claims to hold 21474\d+"):
        read_tensors(path)


def nested(depth):
    """Returns a pickled tuple that has the same tuple twice, which has the same tuple twice, and so on."""
    return b")" + b"2\x86" * depth


def test_objects_that_take_forever_to_print_are_not_printed(tmp_path):
    for kind, key in ((nested(60), b"K\x00"), (b"X\x07\x00\x00\x00storage", nested(60))):
        storage = b"(" + kind + b"ctorch\nFloatStorage\n" + key + b"NK\x06tQ."
        with pytest.raises(UserError, match="refers to an object that is not the storage of a tensor"):
            read_tensors(torch_file(tmp_path / "n.bin", b"\x80\x02" + storage, **{"0": STORAGE}))


@pytest.mark.parametrize("file", ["tensors.pth", "tensors_legacy.pth"])
def test_every_kind_of_damage_is_one_error_that_names_the_file(tmp_path, file):
    whole, chance = (DATA / file).read_bytes(), random.Random(0)
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 2])):
            place = chance.randrange(len(data))
            change = chance.choice([b"", chance.randbytes(1), chance.randbytes(4)])
            data[place : place + chance.choice([0, 1, 4])] = change
        (tmp_path / "f.bin").write_bytes(data)
        try:
            for tensor in read_tensors(tmp_path / "f.bin").values():
                np.asarray(tensor)
        except ValueError as error:
            assert str(tmp_path / "f.bin") in str(error)


def test_a_pickle_cannot_change_what_was_checked(tmp_path):
    """The opcode BUILD sets attributes of an object: here of a storage and of the rebuilding function."""
    state = pickle.dumps({"size": 1, "__doc__": "changed"}, 2)[2:-1]
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
    for data in (b"\x80\x02" + storage[1:] + state + b"b.", b"\x80\x02" + rebuild + state + b"b."):
        with pytest.raises(UserError, match=r"cannot be read: .* object has no attribute '__dict__'"):
            read_tensors(torch_file(tmp_path / "build.bin", data, **{"0": STORAGE}))


def test_names_must_be_text(tmp_path):
    path = torch_file(tmp_path / "n.bin", tensor_pickle(0, (2,), (1,), name=7), **{"0": STORAGE})
    with pytest.raises(UserError, match="found the name 7"):
        read_tensors(path)


def test_damaged_files(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_tensors(tmp_path / "w.bin")
    whole = (DATA / "tensors.pth").read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.bin is not a complete zip file"):
        read_tensors(tmp_path / "half.bin")
    whole = (DATA / "tensors_legacy.pth").read_bytes()
    for length in (len(whole) - 1, len(whole) + 1):
        (tmp_path / "l.bin").write_bytes((whole + b"x")[:length])
        with pytest.raises(UserError, match=rf"l\.bin cannot be read: it has {length} bytes, but its tensors take"):
            read_tensors(tmp_path / "l.bin")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights are read from \.bin"):
        read_tensors(tmp_path / "w.npz")
    (tmp_path / "w.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="storage 1 is missing"):
        read_tensors(torch_file(tmp_path / "m.bin", tensor_pickle(0, (2,), (1,), key="1"), **{"0": STORAGE}))
    with zipfile.ZipFile(tmp_path / "z.bin", "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_tensors(tmp_path / "z.bin")
    with pytest.raises(UserError, match="has 8 bytes, too few for 6 numbers of float32"):
        read_tensors(torch_file(tmp_path / "s.bin", tensor_pickle(0, (6,), (1,)), **{"0": STORAGE[:8]}))
    flipped = bytearray(torch_file(tmp_path / "f.bin", tensor_pickle(0, (6,), (1,)), **{"0": STORAGE}).read_bytes())
    flipped[flipped.index(STORAGE) + 3] ^= 1
    (tmp_path / "f.bin").write_bytes(flipped)
    with pytest.raises(UserError, match=r"f\.bin is damaged: archive/data/0: Bad CRC"):
        np.asarray(read_tensors(tmp_path / "f.bin")["w"])


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(0, (6,), (1,)))
        archive.writestr("archive/data/0", bytes(10**8))
    with pytest.raises(UserError, match="is compressed"):
        read_tensors(tmp_path / "bomb.bin")
