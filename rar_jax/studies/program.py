"""The training program of a study's cells, compiled once for all cells of equal shapes."""

import dataclasses

import jax
import numpy as np

from rar_jax.training.program import Program
from rar_jax.training.state import TrainState
from rar_jax.training.step import Batch, train_step


class CellProgram(Program):
    """The program of a cell. Its compiled step takes the arguments below; the shape of the annealing is a constant.

    In an ordinary run they are constants of the compiled step. As arguments, they leave the same program for all cells
    that differ in nothing else, and JAX's compilation cache then serves every cell but the first.
    """

    def arguments(self) -> dict[str, np.ndarray]:
        """Returns the settings of the step that are arguments."""
        config = self.step_config
        return {
            "seed": np.uint32(config.seed),
            "scan_order": np.asarray(config.scan_order, np.int32),
            "anneal_start": np.int32(config.anneal_start),
            "anneal_end": np.int32(config.anneal_end),
            "final_randomness": np.float32(config.final_randomness),
        }

    def step(
        self, state: TrainState, batch: Batch, arguments: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """See `BaseProgram.step`."""
        step_config = dataclasses.replace(self.step_config, **arguments)
        return train_step(state, batch, model=self.model, optimizer=self.optimizer, step_config=step_config)


def cell_program(program: Program) -> CellProgram:
    """Returns the same program with a step that is compiled for all cells of equal shapes."""
    return CellProgram(**{field.name: getattr(program, field.name) for field in dataclasses.fields(program)})
