import jax
import numpy as np
import pytest

from rar_jax.data.datasets import Datasets
from rar_jax.data.records import SyntheticRecords
from rar_jax.parallel.mesh import make_mesh
from rar_jax.training.evaluators.heldout import HeldOutLosses
from rar_jax.training.preemption import Preemption
from rar_jax.training.program import make_program
from rar_jax.training.step import token_losses


def test_means_over_the_images_of_both_data_sets(small_config):
    """The last batch is padded, and the padding does not count."""
    config = small_config(train={"batch_size": 16}, eval={"num_images": 20})
    program = make_program(config)
    params = jax.jit(program.init)().params
    datasets = Datasets(*(SyntheticRecords(count, seed, 64, 17, 10) for count, seed in ((64, 0), (20, 1))))
    evaluator = HeldOutLosses(config, program, make_mesh((1,), jax.devices()[:1]), datasets)
    values = evaluator.run(3, params, {}, Preemption()).values
    assert set(values) == {measure.name for measure in evaluator.measures}
    batch = datasets.heldout.read(np.arange(20))
    order = np.tile(program.step_config.scan_order, (20, 1))
    losses, hits = jax.jit(token_losses, static_argnums=0)(
        program.model, params, {"visited": batch["tokens"], "label": batch["label"], "order": order}
    )
    assert values["heldout/target_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert values["heldout/target_accuracy"] == pytest.approx(float(hits.mean()), rel=1e-5)
    assert len({values[f"{data}/{order}_loss"] for data in ("train", "heldout") for order in ("target", "random")}) == 4
