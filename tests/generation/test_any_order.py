import types

import numpy as np

from rar_jax.generation.any_order import Classification, Completion, Decoding, Grid, Subject, _masks
from rar_jax.models.sizes import ModelConfig
from rar_jax.sampling.options import Options

GRID = Grid(scan_orders=["row_major", "random"], steps=[16, 4], guidance=["pow_cosine", "none"], seeds=2)


def subject():
    """Two models of 16 tokens, of which only the options are used; the second has another scan order."""

    def generator(order):
        model = types.SimpleNamespace(config=ModelConfig(grid_side=4))
        return types.SimpleNamespace(
            options=lambda **given: Options(**{"scan_order": order} | given),
            sampler=types.SimpleNamespace(model=model),
        )

    generators = {"any": generator("row_major"), "raster": generator("z_curve")}
    return Subject(generators, None, None, np.zeros((6, 16), np.int32), np.zeros(6, np.int32), 10, 10)


def test_every_combination_is_decoded_once():
    cells = subject().decodings(GRID)
    assert len(set(cells)) == len(cells) == 2 * 2 * (2 * 3 + 1)
    one_token = [cell for cell in cells if cell.steps == 16]
    assert {cell.schedule for cell in one_token} == {"uniform"} and len(one_token) == 2 * 2 * (2 + 1)
    assert {cell.scan_order for cell in cells if cell.model == "raster"} == {"z_curve"}
    verified = subject().verified_decodings(GRID)
    assert verified == [
        Decoding("any", guidance, order, "uniform", 4, True, 0)
        for guidance in ("pow_cosine", "none")
        for order in ("row_major", "random")
    ]
    assert verified[0].baseline(16)._replace(seed=1) in cells


def test_held_out_images_are_completed_and_classified_with_every_seed():
    completions, classifications = subject().completions(GRID), subject().classifications(GRID)
    assert len(set(completions)) == 2 * 3 * 2
    assert Completion("any", "none", "lower_half", 1).baseline(16) == completions[-1]
    assert [cell for cell in classifications if cell.orders in (0, 4)] == [
        Classification("any", 0, 0),
        Classification("any", 4, 0),
        Classification("any", 4, 1),
        Classification("raster", 0, 0),
    ]


def test_half_of_the_tokens_of_each_image_are_masked():
    lower, drawn, other = _masks("lower_half", 0, (50, 16)), *(_masks("random_half", s, (50, 16)) for s in (0, 1))
    assert lower[:, 8:].all() and not lower[:, :8].any() and _masks("all", 0, (50, 16)).all()
    assert (drawn.sum(axis=1) == 8).all() and (drawn != other).any()
    assert (drawn.mean(axis=0) > 0.2).all() and (drawn.mean(axis=0) < 0.8).all()
