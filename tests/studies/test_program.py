import dataclasses

import jax
import numpy as np
from running import tiny_study

from rar_jax.parallel.mesh import make_mesh, put_batch
from rar_jax.studies.plan import Row, cells_of
from rar_jax.studies.program import cell_program
from rar_jax.training.program import make_program


def batches(count):
    rng = np.random.default_rng(0)
    shapes = {"tokens": (17, (128, 64)), "label": (10, (128,))}
    return [
        {name: rng.integers(high, size=size).astype(np.int32) for name, (high, size) in shapes.items()}
        for _ in range(count)
    ]


def test_a_cell_is_trained_as_an_ordinary_run_is():
    """Also within the window, where the orders are a mixture, and with a seed that needs all 32 bits."""
    cell = cells_of(tiny_study(seeds=1))[1]
    config = dataclasses.replace(cell.config, seed=2**32 - 5)
    mesh, program = make_mesh((1,), jax.devices()[:1]), make_program(config)
    losses = []
    for each in (program, cell_program(program)):
        state = jax.jit(each.init)()
        step = each.compile_step(mesh, state, put_batch(batches(1)[0], mesh))
        found = []
        for batch in batches(4):
            state, values = step(state, put_batch(batch, mesh))
            found.append([float(values[name]) for name in ("loss", "grad_norm")])
        losses.append(found)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_cells_of_equal_shapes_share_a_compiled_program():
    study = tiny_study(seeds=2)
    rows = [
        *study.rows,
        Row("spiral", {"permutation.scan_order": "spiral_in", "permutation.final_randomness": 0.5}),
        Row("dropout", {"model.dropout": 0.3}),
    ]
    mesh = make_mesh((1,), jax.devices()[:1])
    texts = {}
    for cell in cells_of(dataclasses.replace(study, rows=rows)):
        program = cell_program(make_program(cell.config))
        lowered = program.lower_step(mesh, jax.eval_shape(program.init), batches(1)[0])
        texts.setdefault(lowered.as_text(), set()).add(cell.row.label)
    assert list(texts.values()) == [{"0-0", "0-1", "spiral"}, {"dropout"}]
