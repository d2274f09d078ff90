"""A run, set up and checked: devices, data, the program, the evaluators and the checkpoints."""

import contextlib
import dataclasses
from collections.abc import Sequence

import grain
import jax
from etils import epath
from jax.sharding import Mesh

from rar_jax.config import Config, mesh_shape
from rar_jax.data.datasets import Datasets, open_datasets
from rar_jax.data.glyphs import source_name
from rar_jax.data.loader import train_iterator
from rar_jax.data.tokenizers import Tokenizer, load_tokenizer
from rar_jax.errors import UserError, naming
from rar_jax.evaluation.sample_scores import DigitsScorer, GlyphScorer, SampleScorer, open_scorer
from rar_jax.files import warn_of_write_errors
from rar_jax.images.plots import plot_scan_orders
from rar_jax.parallel.distributed import is_first, together
from rar_jax.parallel.mesh import host_rows, make_mesh
from rar_jax.performance.costs import train_flops
from rar_jax.run_folder import check_folder
from rar_jax.schema import check_run
from rar_jax.training.base_run import BaseRun, check_stored_config, is_new, open_store
from rar_jax.training.curves import plot_run
from rar_jax.training.evaluators.evaluator import Evaluator, best_measure
from rar_jax.training.evaluators.heldout import HeldOutLosses
from rar_jax.training.evaluators.report import DIGITS, Report, glyph_comparison
from rar_jax.training.evaluators.samples import Samples
from rar_jax.training.evaluators.sampling import StepSampler
from rar_jax.training.evaluators.scores import SampleScores
from rar_jax.training.finetune import check_sizes, load_init_from, start_from
from rar_jax.training.metrics import read_metrics
from rar_jax.training.program import Program, make_program
from rar_jax.training.state import TrainState

_SCORED_WITH = "config.eval.inception and config.eval.reference"


@dataclasses.dataclass(frozen=True)
class Run(BaseRun):
    """The run of a RAR; see `BaseRun`.

    Attributes:
      datasets: the training and the held-out data.
    """

    datasets: Datasets

    def start(self, state: TrainState, shardings: TrainState) -> TrainState:
        """See `BaseRun.start`."""
        if self.config.init_from:
            state = start_from(self.config.init_from, self.config.model, state, shardings)
        if is_first():
            with warn_of_write_errors(self.folder):
                plot_scan_orders(self.folder / "figures" / "scan_orders.png", self.config.model.grid_side)
        return state

    def host_batches(self) -> grain.DatasetIterator:
        """See `BaseRun.host_batches`."""
        config = self.config
        return train_iterator(
            self.datasets.train,
            config.train.batch_size,
            config.total_steps,
            config.seed,
            host_rows(self.mesh, config.train.batch_size),
        )

    def draw_curves(self) -> None:
        """See `BaseRun.draw_curves`."""
        plot_run(self.folder / "figures" / "curves.png", read_metrics(self.folder), self.config.anneal_steps)


def prepare(config: Config, folder: epath.PathLike, allow_config_change: Sequence[str] = ()) -> Run:
    """Sets up a run and checks everything that can be checked before a program is compiled.

    Args:
      config: the run's config.
      folder: the run's folder.
      allow_config_change: fields that may differ from the folder's config although they change what is trained.

    Raises:
      UserError: the config does not fit the devices, the data or the folder's run; or another process trains in the
        folder.
    """
    check_run(config)
    folder = epath.Path(folder)
    mesh = make_mesh(mesh_shape(config, jax.device_count()))
    program = make_program(config)
    program.check_devices(mesh)
    with together():
        check_folder("workdir", folder)
        # Before the data, which may have to be made first.
        check_stored_config(config, folder, allow_config_change)
    _check_init_from(config, folder)
    with together():
        tokenizer = load_tokenizer(config)
        datasets = open_datasets(config, tokenizer)
        _check_glyphs(config, datasets)
        scorer = _open_scorer(config)
        evaluators = _make_evaluators(config, folder, mesh, program, datasets, tokenizer, scorer)
        best = best_measure(config.checkpoint, evaluators)
        _prepare_scorer(config, scorer)
    store, held = open_store(config, folder, best)
    return Run(
        config=config,
        folder=folder,
        mesh=mesh,
        program=program,
        evaluators=evaluators,
        store=store,
        lock=held,
        steps_per_epoch=config.steps_per_epoch,
        step_flops=config.train.batch_size / mesh.size * train_flops(config.model),
        datasets=datasets,
    )


def _make_evaluators(
    config: Config,
    folder: epath.Path,
    mesh: Mesh,
    program: Program,
    datasets: Datasets,
    tokenizer: Tokenizer | None,
    scorer: SampleScorer | None,
) -> list[Evaluator]:
    sampler = StepSampler(config, program.model, mesh)
    evaluators = []
    if datasets.heldout is not None:
        evaluators.append(HeldOutLosses(config, program, mesh, datasets))
    if tokenizer is not None and config.eval.samples_per_class:
        evaluators.append(Samples(config, sampler, tokenizer))
    if scorer is not None:
        evaluators.append(SampleScores(config, sampler, tokenizer, scorer))
    if config.eval.report_samples:
        digits = config.data.name == "digits"
        comparison = DIGITS if digits else glyph_comparison(config, tokenizer, datasets.heldout)
        evaluators.append(Report(config, sampler, tokenizer, folder, comparison))
    return evaluators


def _check_glyphs(config: Config, datasets: Datasets) -> None:
    """Checks that token records are of glyphs, if samples are to be scored as glyphs.

    Raises:
      UserError: they are of other images.
    """
    options, data = config.eval, config.data
    scored = options.report_samples or (options.score_every and not options.inception)
    if data.name != "records" or not scored:
        return
    for name, split, records in (("path", "train", datasets.train), ("eval_path", "heldout", datasets.heldout)):
        found = "nothing" if records is None else records.description.source
        if found != (wanted := source_name(split, config.model.num_classes)):
            raise UserError(
                f"config.eval.score_every={options.score_every} and config.eval.report_samples="
                f"{options.report_samples} score samples of the glyphs, but config.data.{name}={getattr(data, name)!r} "
                f"holds {found}, not {wanted}: set both to 0, or name Inception weights with config.eval.inception"
            )


def _open_scorer(config: Config) -> SampleScorer | None:
    options = config.eval
    if not options.score_every:
        return None
    if not options.inception:
        return DigitsScorer() if config.data.name == "digits" else GlyphScorer(config.model.num_classes)
    with naming(_SCORED_WITH):
        return open_scorer(options.inception, options.reference, config.data.image_size)


def _prepare_scorer(config: Config, scorer: SampleScorer | None) -> None:
    """Prepares the scorer now, so that an unusable reference image ends the run before its first step."""
    if scorer is None or not is_first():
        return
    with naming(_SCORED_WITH) if config.eval.inception else contextlib.nullcontext():
        scorer.prepare()


def _check_init_from(config: Config, folder: epath.Path) -> None:
    """Checks that a new run can start from the weights that its config names.

    Raises:
      UserError: the weights cannot be read, or their sizes do not fit.
    """
    if config.init_from and is_new(folder):
        with together():
            # `Run.start` reads the weights again, so that they do not stay in host memory.
            check_sizes(config.model, load_init_from(config.init_from).model.config)
