import itertools

import jax
import numpy as np
import pytest

from rar_jax.errors import UserError
from rar_jax.parallel.mesh import make_mesh
from rar_jax.sampling import paint as paint_module
from rar_jax.sampling.options import Options
from rar_jax.sampling.paint import paint
from rar_jax.sampling.sampler import Sampler

LABELS, NUMBERS = np.array([0, 3, 6, 3], np.int32), np.arange(4, dtype=np.int32)
ROW_MAJOR = Options(guidance_scale=3.0)


@pytest.fixture(scope="module")
def sampler(golden, golden_model):
    """A sampler of the golden model on two devices."""
    return Sampler(golden_model, golden.params, make_mesh((2, 1), jax.devices()[:2]))


def assert_grows(painted, tokens):
    """Checks that tokens, once known, keep the values that they have in the end, and that all are known in the end."""
    for before, after in itertools.pairwise(painted):
        assert (before.known <= after.known).all()
    for each in painted:
        np.testing.assert_array_equal(np.where(each.known, each.tokens, 0), np.where(each.known, tokens, 0))
    assert painted[-1].known.all()


@pytest.mark.parametrize(
    ("options", "every"),
    [
        (ROW_MAJOR, 5),
        (Options(scan_order="spread", steps=5, schedule="cosine", guidance="none"), 2),
    ],
    ids=str,
)
def test_chunks_give_the_tokens_of_one_go(sampler, options, every, monkeypatch):
    monkeypatch.setattr("rar_jax.sampling.decode._num_stages", lambda model, sequences: 2)
    expected, _ = sampler.decode(LABELS, NUMBERS, 2, options)
    painted = list(paint(sampler, LABELS, NUMBERS, 2, options, every))
    assert_grows(painted, np.asarray(expected))
    if options == ROW_MAJOR:
        # The first token, and then the chunks of the two stages of 7 and 8 passes.
        counts = [1, 6, 8, 13, 16]
        assert [each.known[0].sum() for each in painted] == counts
        np.testing.assert_array_equal(painted[1].known[2], np.arange(16) < counts[1])


@pytest.mark.parametrize("options", [ROW_MAJOR, Options(scan_order="spread", steps=4, verify=True)], ids=str)
def test_an_edit_in_chunks_gives_the_tokens_of_one_go(sampler, golden, options):
    tokens = golden["tokens"].astype(np.int32)
    masked = np.random.default_rng(0).random((4, 16)) < np.array([0.2, 0.5, 0.8, 1.0])[:, None]
    expected, _ = sampler.decode(LABELS, NUMBERS, 1, options, (tokens, masked))
    painted = list(paint(sampler, LABELS, NUMBERS, 1, options, 3, (tokens, masked)))
    assert (painted[0].known >= ~masked).all() and not painted[0].known.all()
    assert_grows(painted, np.asarray(expected))


def test_stopping_ends_the_work_and_orders_and_lengths_share_a_program(sampler, monkeypatch):
    calls = []
    jit = paint_module._jit
    # The programs of the tests above.
    jit.cache_clear()
    monkeypatch.setattr(
        paint_module, "_jit", lambda function, *rest: calls.append(function.__name__) or jit(function, *rest)
    )
    for order, every in (("row_major", 3), ("random", 4)):
        chunks = paint(sampler, LABELS, NUMBERS, 0, Options(scan_order=order, temperature=0.5), every)
        next(chunks), next(chunks)
        chunks.close()
    assert calls == ["_begin", "_begin_segment", "_run"] * 2
    assert jit.cache_info().misses == 3


def test_chunks_must_have_passes(sampler):
    with pytest.raises(UserError, match="every=0 must be at least 1"):
        next(paint(sampler, LABELS, NUMBERS, 0, ROW_MAJOR, 0))
