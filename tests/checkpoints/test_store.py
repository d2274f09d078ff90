import functools
import logging
import math
import shutil
import sys
import threading
import time
import warnings

import absl.logging
import jax
import numpy as np
import pytest
import tensorstore
from etils import epath

from rar_jax.checkpoints.manifest import DamagedError, verify
from rar_jax.checkpoints.store import Best, CheckpointStore, _absolute
from rar_jax.config import CheckpointConfig, OptimizerConfig
from rar_jax.errors import UserError
from rar_jax.models.rar import RAR
from rar_jax.models.sizes import ModelConfig
from rar_jax.parallel.mesh import make_mesh, replicated
from rar_jax.parallel.partition import shardings
from rar_jax.training.optimizer import adamw
from rar_jax.training.state import init_state

STEP = 3


@pytest.fixture(scope="module")
def shapes():
    """The shapes of a train state with a moving average."""
    model = RAR(
        ModelConfig(
            grid_side=4,
            codebook_size=24,
            num_classes=5,
            width=128,
            depth=2,
            num_heads=2,
            mlp_width=256,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )
    return jax.eval_shape(functools.partial(init_state, model, adamw(OptimizerConfig(), lambda step: 1e-3), 0, True))


@pytest.fixture(scope="module")
def state(shapes):
    """A train state in which all arrays differ."""
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda x: (100 * rng.standard_normal(x.shape)).astype(x.dtype), shapes)
    return filled.replace(step=np.int32(STEP))


@pytest.fixture(scope="module")
def saved(state, shapes, tmp_path_factory):
    """A run's folder with a checkpoint that was saved on a mesh of data 2 x fsdp 4."""
    folder = tmp_path_factory.mktemp("run")
    store = CheckpointStore(folder, CheckpointConfig())
    store.save(jax.device_put(state, shardings(shapes, make_mesh((2, 4)))), {"loader": 7})
    assert store.close()
    return folder


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (2, 4), (4, 2), (8, 1), (1, 8), (2, 2, 2)])
def test_a_checkpoint_is_restored_onto_any_mesh(saved, state, shapes, mesh):
    """All bits are equal, and each device holds only its shard of an array."""
    wanted = shardings(shapes, make_mesh(mesh, jax.devices()[: math.prod(mesh)]))
    like = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, wanted)
    restored, data = CheckpointStore(saved).restore(STEP, like)
    assert data == {"loader": 7}

    def check(array, expected, sharding):
        assert array.dtype == expected.dtype and array.sharding == sharding
        np.testing.assert_array_equal(array, expected)
        shards = {shard.device: shard.data.shape for shard in array.addressable_shards}
        assert shards == dict.fromkeys(sharding.device_set, sharding.shard_shape(array.shape))

    jax.tree.map(check, restored, state, wanted)
    kernel = restored.params["blocks"]["mlp"]["fc1"]["kernel"]
    (shape,) = {shard.data.shape for shard in kernel.addressable_shards}
    assert math.prod(shape) == 2 * 128 * 256 // math.prod(mesh[1:])


def bytes_read():
    """Returns the number of bytes that TensorStore has read in this process so far."""
    (metric,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return metric["values"][0]["value"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling_reads_only_the_average_in_the_requested_dtype(saved, state, dtype):
    sharding = replicated(make_mesh((8, 1)))
    store = CheckpointStore(saved)
    before = bytes_read()
    params = store.restore_sampling_params(STEP, sharding, dtype)
    read = bytes_read() - before

    def check(array, expected):
        assert array.dtype == dtype and array.sharding == sharding
        np.testing.assert_array_equal(array, expected.astype(dtype))

    jax.tree.map(check, params, state.ema)
    # The checkpoint has four trees of this size: the parameters, two moments and the average.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.ema))
    assert 0.8 * size < read < 1.5 * size


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_a_bit(step):
    largest = max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)


def half(step):
    shutil.rmtree(step / "state")


def garble_the_manifest(step):
    (step / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [flip_a_bit, half, garble_the_manifest])
def test_sampling_uses_the_newest_undamaged_checkpoint_and_changes_no_files(saved, state, tmp_path, caplog, damage):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    checkpoints = folder / "checkpoints"
    for newer in (STEP + 2, STEP + 4):
        shutil.copytree(checkpoints / str(STEP), checkpoints / str(newer))
        damage(checkpoints / str(newer))
    before = files(folder)
    sharding = replicated(make_mesh((8, 1)))
    store = CheckpointStore(folder)
    step, params = store.restore_newest_sampling_params(sharding, "float32")
    assert step == STEP
    jax.tree.map(np.testing.assert_array_equal, params, state.ema)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.split(" cannot be read")[0] for line in messages] == [
        f"checkpoint {checkpoints / n}" for n in ("7", "5")
    ]
    last = caplog.records[-1]
    assert last.levelname == "WARNING"
    assert last.getMessage() == "using the checkpoint of step 3, because newer ones are damaged: 7, 5"
    # A damaged step that is requested explicitly is refused.
    with pytest.raises(DamagedError, match=rf"checkpoints/{STEP + 4} cannot be read"):
        store.restore_sampling_params(STEP + 4, sharding, "float32")
    store.close()
    assert files(folder) == before


def test_without_an_undamaged_checkpoint_there_is_one_error(saved, tmp_path, caplog):
    sharding = replicated(make_mesh((8, 1)))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=f"no checkpoint in '{tmp_path}'"):
        CheckpointStore(tmp_path).restore_newest_sampling_params(sharding, "float32")
    shutil.copytree(saved / "checkpoints" / str(STEP), tmp_path / "checkpoints" / str(STEP))
    half(tmp_path / "checkpoints" / str(STEP))
    with pytest.raises(UserError, match=r"no checkpoint can be read: .*/3 cannot be read: .* is missing"):
        CheckpointStore(tmp_path).restore_newest_sampling_params(sharding, "float32")
    # Only the error reports it; nothing is logged.
    assert not [record for record in caplog.records if record.name.startswith("rar_jax")]


def two_checkpoints(saved, folder):
    """Copies a run's folder and adds a second, newer checkpoint."""
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "checkpoints" / str(STEP), folder / "checkpoints" / str(STEP + 2))
    return folder


def out_of_memory(*args, **options):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")


def no_network(*args, **options):
    raise ConnectionError("the bucket cannot be reached")


def not_permitted(*args, **options):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("where", "failure", "error"),
    [
        ("orbax.checkpoint.CheckpointManager.restore", out_of_memory, jax.errors.JaxRuntimeError),
        ("orbax.checkpoint.CheckpointManager.restore", no_network, ConnectionError),
        ("rar_jax.checkpoints.manifest._digest", no_network, ConnectionError),
        ("rar_jax.checkpoints.manifest._digest", not_permitted, PermissionError),
        ("rar_jax.checkpoints.manifest._is_missing", no_network, ConnectionError),
    ],
)
def test_errors_other_than_damage_are_raised_unchanged_and_nothing_moves(
    saved, shapes, tmp_path, monkeypatch, where, failure, error
):
    folder = two_checkpoints(saved, tmp_path / "run")
    before = files(folder)
    sharding = replicated(make_mesh((8, 1)))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    store = CheckpointStore(folder, CheckpointConfig())
    monkeypatch.setattr(where, failure)
    for restore in (
        lambda: store.restore_newest(like),
        lambda: store.restore_newest_sampling_params(sharding, "float32"),
    ):
        with pytest.raises(error) as raised:
            restore()
        assert raised.type is error
    store.close()
    assert files(folder) == before and not (folder / "damaged_checkpoints").exists()


@pytest.mark.parametrize("failure", [not_permitted, no_network])
def test_a_file_that_cannot_be_seen_is_not_missing(saved, tmp_path, monkeypatch, failure):
    folder = two_checkpoints(saved, tmp_path / "run") / "checkpoints" / str(STEP + 2)
    assert verify(folder)
    monkeypatch.setattr("os.stat", failure)
    monkeypatch.setattr("pathlib.Path.stat", failure)
    with pytest.raises(OSError) as raised:
        verify(folder)
    assert not isinstance(raised.value, UserError)


def test_a_state_of_another_shape_is_not_damage(saved, shapes, tmp_path):
    folder = two_checkpoints(saved, tmp_path / "run")
    before = files(folder)
    sharding = replicated(make_mesh((8, 1)))
    wider = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], *(2 * n for n in x.shape[-1:])), x.dtype, sharding=sharding),
        shapes,
    )
    store = CheckpointStore(folder, CheckpointConfig())
    with pytest.raises(ValueError, match="shape") as raised:
        store.restore_newest(wider)
    assert not isinstance(raised.value, UserError)
    store.close()
    assert files(folder) == before and not (folder / "damaged_checkpoints").exists()


def test_a_checkpoint_that_is_not_proven_to_be_damaged_stays(saved, shapes, tmp_path):
    """Without a manifest, it is unknown whether the missing files ever existed."""
    folder = two_checkpoints(saved, tmp_path / "run")
    half(folder / "checkpoints" / str(STEP + 2))
    (folder / "checkpoints" / str(STEP + 2) / "manifest.json").unlink()
    before = files(folder)
    sharding = replicated(make_mesh((8, 1)))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    store = CheckpointStore(folder, CheckpointConfig())
    for restore in (
        lambda: store.restore_newest(like),
        lambda: store.restore_newest_sampling_params(sharding, "float32"),
    ):
        with pytest.raises(Exception) as raised:
            restore()
        assert not isinstance(raised.value, UserError)
    store.close()
    assert files(folder) == before


def test_the_newest_checkpoint_without_a_manifest_is_restored_with_a_warning(saved, state, shapes, tmp_path, caplog):
    folder = two_checkpoints(saved, tmp_path / "run")
    (folder / "checkpoints" / str(STEP + 2) / "manifest.json").unlink()
    sharding = replicated(make_mesh((8, 1)))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    restored, _ = CheckpointStore(folder).restore_newest(like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    step, _ = CheckpointStore(folder).restore_newest_sampling_params(sharding, "float32")
    assert step == STEP + 2
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2 and all("/5 has no manifest, and is restored unverified" in line for line in warned)


@pytest.mark.parametrize(("best_is_max", "best"), [(False, 4), (True, 3)])
def test_the_best_checkpoint_is_kept(state, tmp_path, best_is_max, best):
    earlier = CheckpointStore(tmp_path, CheckpointConfig())
    earlier.save(state.replace(step=np.int32(1)), {})
    assert earlier.close()
    # The run goes back to step 1, so that the better value that was measured at step 5 is that of another checkpoint.
    known = {1: math.nan, 5: 10.0 if best_is_max else -1.0}
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=1), Best("score", best_is_max, known))
    for step, measured in ((2, {"score": math.nan}), (3, {"score": 9.0}), (4, {"score": 2.0}), (5, {}), (6, {})):
        store.save(state.replace(step=np.int32(step)), {})
        store.add_measured(step, {"other": 0.0} | measured)
    assert store.close()
    assert CheckpointStore(tmp_path).steps == [best, 6]


def test_a_hurried_save_does_not_wait_for_the_manifest_of_the_save_before(state, tmp_path, monkeypatch):
    hashing, told = threading.Event(), []

    def slow(path, given_up):
        hashing.set()
        told.append(given_up.wait(20))
        raise TimeoutError

    monkeypatch.setattr("rar_jax.checkpoints.store._HURRIED_SECONDS", 0.1)
    monkeypatch.setattr("rar_jax.checkpoints.manifest._digest", slow)
    store = CheckpointStore(tmp_path, CheckpointConfig())
    store.save(state, {})
    assert hashing.wait(60)
    store.save(state.replace(step=np.int32(STEP + 1)), {}, hurried=True)
    assert told and all(told)
    assert store.close(hurried=True)
    assert CheckpointStore(tmp_path).steps == [STEP, STEP + 1]


def silencers():
    """Returns the filters, levels and hooks that could suppress messages of other libraries."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    return [[*logger.filters, logger.level] for logger in loggers], [*warnings.filters], sys.unraisablehook


def test_other_libraries_are_silenced_only_from_a_save_until_one_succeeds(state, tmp_path, monkeypatch, caplog):
    before = silencers()
    store = CheckpointStore(tmp_path, CheckpointConfig())
    assert silencers() == before
    store.save(state, {})
    during = silencers()
    assert all(each != other for each, other in zip(during, before, strict=True))
    # The silence ends when the save has succeeded, and not only with the next one.
    deadline = time.monotonic() + 60
    while silencers() != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert silencers() == before
    store.save(state.replace(step=np.int32(STEP + 1)), {})
    assert store.close()
    assert silencers() == before
    store = CheckpointStore(tmp_path, CheckpointConfig())

    def full(*args, **options):
        absl.logging.error("Orbax is not silenced here")
        warnings.warn("coroutine 'save' was never awaited", RuntimeWarning, stacklevel=1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._manager, "save", full)
    with warnings.catch_warnings(record=True) as messages:
        store.save(state.replace(step=np.int32(STEP + 2)), {})
    assert not messages and "Orbax is not silenced here" in caplog.text
    # The tasks that a failed save abandons end later.
    caplog.clear()
    for message in ["_GatheringFuture exception was never retrieved", "Task was destroyed but it is pending!"]:
        logging.getLogger("asyncio").error(message)
    assert not caplog.text
    monkeypatch.undo()
    store.save(state.replace(step=np.int32(STEP + 3)), {})
    assert store.close()
    assert silencers() == before


def test_checkpoints_on_a_bucket_are_not_put_on_this_machine():
    assert str(_absolute(epath.Path("gs://bucket/run")) / "checkpoints") == "gs://bucket/run/checkpoints"
    assert _absolute(epath.Path("run")).is_absolute()
