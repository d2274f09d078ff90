"""The run of a tokenizer, set up and checked: devices, images, the program, the evaluators and the checkpoints."""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rar_jax.checkpoints.weights import Weights, load_weights
from rar_jax.data.image_loader import Crops, ImageBatches, TrainImages
from rar_jax.data.sources import check_outside
from rar_jax.errors import naming
from rar_jax.evaluation.features import InceptionExtractor
from rar_jax.images.plots import Line, Panel, plot_panels
from rar_jax.parallel.distributed import check_equal, together
from rar_jax.parallel.mesh import data_mesh, fetch, host_rows, put_tree
from rar_jax.performance.costs import vqgan_train_flops
from rar_jax.run_folder import check_folder
from rar_jax.schema import check_run
from rar_jax.tokenizer_config import TokenizerConfig
from rar_jax.tokenizer_training.evaluators import Reconstructions
from rar_jax.tokenizer_training.images import ImageSets, open_images
from rar_jax.tokenizer_training.init_from import CODEBOOK, load_init_from, merge_params, start_codebook
from rar_jax.tokenizer_training.program import make_program
from rar_jax.tokenizer_training.state import TokenizerState
from rar_jax.training.base_run import BaseRun, check_stored_config, is_new, open_store
from rar_jax.training.evaluators.evaluator import best_measure
from rar_jax.training.metrics import points, read_metrics

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenizerRun(BaseRun):
    """The run of a tokenizer; see `BaseRun`.

    Attributes:
      images: the training and the held-out images.
    """

    images: ImageSets

    def start(self, state: TokenizerState, shardings: TokenizerState) -> TokenizerState:
        """See `BaseRun.start`. Learned codes start from clusters of latents, unless they come with the weights."""
        config, params, left = self.config, jax.tree.map(fetch, state.params), [CODEBOOK]
        if config.init_from:
            with together():
                weights = load_init_from(config)
            check_equal(f"config.init_from={config.init_from}", weights.identity)
            params, left = merge_params(config, params, weights.params)
            _log.info(
                "starts from the weights of %s; reinitialised: %s", config.init_from, ", ".join(left) or "nothing"
            )
        if config.quantizer.kind == "vq" and CODEBOOK in left:
            batches = self._train_images(np.arange(config.train.batch_size))
            codebook = start_codebook(self.program.settings.model, params, batches, config.seed)
            params = params | {"quantize": {"embedding": codebook}}
        return state.replace(params=put_tree(params, shardings.params), ema=put_tree(params, shardings.ema))

    def host_batches(self) -> ImageBatches:
        """See `BaseRun.host_batches`."""
        rows = host_rows(self.mesh, self.config.train.batch_size)
        return ImageBatches(self._train_images(rows), self.config.data.workers)

    def _train_images(self, rows: np.ndarray) -> TrainImages:
        config = self.config
        crops = Crops(config.data.image_size, config.data.min_crop, config.data.flip)
        return TrainImages(self.images.train, crops, config.train.batch_size, config.train.steps, config.seed, rows)

    def draw_curves(self) -> None:
        """Draws the loss, the learning rate and what was measured on held-out images."""
        entries = read_metrics(self.folder)
        panels = [
            Panel("Loss of training batches", [Line(points(entries, "train/loss"), color="0.6")]),
            Panel("Learning rate", [Line(points(entries, "train/learning_rate"), color="tab:green")]),
        ]
        for measure in (measure for each in self.evaluators for measure in each.measures):
            panels.append(Panel(measure.title, [Line(points(entries, measure.name), marker=".")]))
        plot_panels(self.folder / "figures" / "curves.png", panels)


def prepare(config: TokenizerConfig, folder: epath.PathLike, allow_config_change: Sequence[str] = ()) -> TokenizerRun:
    """Sets up a run and checks everything that can be checked before a program is compiled.

    Args:
      config: the run's config.
      folder: the run's folder.
      allow_config_change: fields that may differ from the folder's config although they change what is trained.

    Raises:
      UserError: the config does not fit the devices, the images or the folder's run; or another process trains in the
        folder.
    """
    check_run(config)
    folder = epath.Path(folder)
    mesh = data_mesh("config.train.batch_size", config.train.batch_size)
    with together():
        check_folder("workdir", folder)
        if config.data.name == "folder":
            for images in filter(None, (config.data.images, config.data.eval_images)):
                check_outside(images, "--workdir", folder)
        check_stored_config(config, folder, allow_config_change)
        inception = open_inception(config)
    check_equal(f"config.inception={config.inception}", "" if inception is None else inception.identity)
    if config.init_from and is_new(folder):
        with together():
            # `TokenizerRun.start` reads the weights again, so that they do not stay in memory.
            load_init_from(config)
    with together():
        images = open_images(config)
    program = make_program(config, inception)
    # Tokenizers compute in float32, whatever they were trained in.
    model = program.settings.model.clone(dtype=jnp.float32)
    extractor = None if inception is None else InceptionExtractor(inception.model, inception.params)
    evaluators = [Reconstructions(config, model, mesh, images.heldout, extractor)]
    with together():
        best = best_measure(config.checkpoint, evaluators)
    store, held = open_store(config, folder, best)
    return TokenizerRun(
        config=config,
        folder=folder,
        mesh=mesh,
        program=program,
        evaluators=evaluators,
        store=store,
        lock=held,
        steps_per_epoch=len(images.train) // config.train.batch_size,
        # Without the discriminator and the perceptual loss.
        step_flops=config.train.batch_size / mesh.size * vqgan_train_flops(config.model, config.data.image_size),
        images=images,
    )


def open_inception(config: TokenizerConfig) -> Weights | None:
    """Returns the Inception network of a config, for rFID and the perceptual distance, or None without one.

    Raises:
      UserError: the weights cannot be read.
    """
    if not config.inception:
        return None
    with naming(f"config.inception={config.inception}"):
        return load_weights(config.inception, "inception")
