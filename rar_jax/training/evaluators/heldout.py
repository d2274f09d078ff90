"""Measures losses of held-out images and of equally many training images, in the target and in random order."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rar_jax.config import Config
from rar_jax.data.datasets import Datasets
from rar_jax.data.loader import eval_batches
from rar_jax.data.records import Records
from rar_jax.parallel.mesh import host_rows, put_batch
from rar_jax.parallel.partition import on_mesh
from rar_jax.training.evaluators.evaluator import Measure, Result, Schedule
from rar_jax.training.preemption import Preemption
from rar_jax.training.program import Program
from rar_jax.training.step import eval_step

_log = logging.getLogger(__name__)

LOSS_TITLE = "Loss (nats per token)"
ACCURACY_TITLE = "Accuracy of the next token"
# Each name has the data set and then the name that `eval_step` returns.
MEASURES = tuple(
    Measure(f"{data}/{order}_{kind}", title, f"{label}, {order} order", larger_is_better)
    for data, label in (("heldout", "held-out"), ("train", "training"))
    for order in ("target", "random")
    for kind, title, larger_is_better in (("loss", LOSS_TITLE, False), ("accuracy", ACCURACY_TITLE, True))
)


class HeldOutLosses:
    """Measures loss and accuracy on held-out and on training images, always the same ones."""

    name = "heldout"
    measures = MEASURES

    def __init__(self, config: Config, program: Program, mesh: Mesh, datasets: Datasets):
        """Prepares the evaluation without compiling. `datasets.heldout` must not be None."""
        self.schedule = Schedule(config.eval.every, config.last_step)
        self._mesh = mesh
        self._datasets = datasets
        self._num_images = min(config.eval.num_images or datasets.heldout.num_images, datasets.heldout.num_images)
        # The size of a microbatch, which fits in memory during training.
        self._batch_size = config.train.batch_size // config.train.accumulation
        evaluate = functools.partial(eval_step, model=program.model, step_config=program.step_config)
        self._eval_step = jax.jit(on_mesh(evaluate, mesh))

    def run(self, step: int, params: dict[str, Any], measured: Mapping[str, float], preemption: Preemption) -> Result:
        """Evaluates a step; see `Evaluator.run`."""
        values = {}
        for data, records in (("train", self._datasets.train), ("heldout", self._datasets.heldout)):
            means = self._means(params, records, preemption)
            values |= {f"{data}/{name}": value for name, value in means.items()}
        _log.info(
            "step %d: held-out loss %.4f in the target order, %.4f in random order",
            *(step, values["heldout/target_loss"], values["heldout/random_loss"]),
        )
        return Result(values)

    def _means(self, params: dict[str, Any], records: Records, preemption: Preemption) -> dict[str, float]:
        sums = None
        rows = host_rows(self._mesh, self._batch_size)
        for batch in eval_batches(records, self._batch_size, self._num_images, rows):
            preemption.check()
            new = self._eval_step(params, put_batch(batch, self._mesh))
            sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
        sums = jax.device_get(sums)
        count = sums.pop("count")
        return {name: float(value / count) for name, value in sums.items()}
