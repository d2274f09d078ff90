"""Samples images of a model: a grid, or a job that writes an .npz or PNG files.

    python -m rar_jax sample --checkpoint=runs/digits --classes=3,7 --num=16
    python -m rar_jax sample --checkpoint=rar_b.bin --tokenizer=VQGAN --num=50000 --out=FOLDER

With --npz or --png, the command runs a job that it resumes if it is started again. Several processes can share a job.
"""

import jax
from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.errors import UserError
from rar_jax.files import NO_ROOM
from rar_jax.generate import load
from rar_jax.generation.job_folder import FILES, check_outputs
from rar_jax.generation.pictures import GRID, GRID_SIZE, PER_CLASS, choose_labels, sample_pictures, samples_folder
from rar_jax.sampling.pace import tokens_per_pass

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_STEP = shared_flags.define_step()
_OUT = shared_flags.define_out("images")
_CLASSES = shared_flags.define_classes("all with --num, otherwise ten evenly spaced ones")
_NUM = flags.DEFINE_integer(
    "num", None, f"Number of images; the classes are interleaved. Default: {PER_CLASS} of each class.", lower_bound=1
)
_NPZ = flags.DEFINE_bool(
    "npz", None,
    f"Write samples.npz in the ADM evaluator's format. Default: for more than {GRID_SIZE[0] * GRID_SIZE[1]} images, "
    "unless --png is given.",
)  # fmt: skip
_PNG = flags.DEFINE_bool("png", False, "Write the images as images/000000.png and so on.")
_SEED = shared_flags.define_seed()
_BATCH = shared_flags.define_batch_size()
_PROCESS_INDEX, _PROCESS_COUNT = shared_flags.define_process()
_OPTIONS = shared_flags.define_options()


def _outputs() -> list[str]:
    """Returns the outputs of a job, names in `FILES`. The list is empty if only a grid is drawn."""
    # Without --num and --classes ten classes are sampled, which fit the grid.
    num = _NUM.value or PER_CLASS * len(_CLASSES.value)
    npz = num > GRID_SIZE[0] * GRID_SIZE[1] and not _PNG.value if _NPZ.value is None else _NPZ.value
    return [name for name, wanted in zip(FILES, (_PNG.value, npz), strict=True) if wanted]


def main(argv):
    del argv
    cli.keep_compiled_programs()
    out = shared_flags.results_folder(_CHECKPOINT.value, _OUT.value, samples_folder)
    processes = jax.process_index(), jax.process_count()
    index, count = shared_flags.share_of_work(_PROCESS_INDEX.value, _PROCESS_COUNT.value, processes)
    outputs = _outputs()
    check_outputs(out, outputs)
    if count > 1 and not outputs:
        raise UserError(f"--process_count={count} needs a job to share: add --npz or --png")
    given = _OPTIONS()
    generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    labels, options = choose_labels(generator, _CLASSES.value, _NUM.value), generator.options(**given)
    generator.warn_if_not_trained(options)
    paces = []
    try:
        complete = sample_pictures(
            generator, labels, options, out, seed=_SEED.value, batch_size=_BATCH.value,
            outputs=outputs, process_index=index, process_count=count, on_pace=paces.append,
        )  # fmt: skip
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # Without outputs, images are only in memory until the grid is written.
        again = "resumes" if outputs else "starts again"
        cli.fail(f"{out}: {error.strerror}; once there is room, the same command {again}", cli.FAILURE)
    if paces:
        print(f"{tokens_per_pass(paces, generator.config.model.num_tokens):.2f} tokens per pass of the network")
    if not complete:
        print(f"{out}: process {index} of {count} has written its images; process 0 completes the job")
        return
    print(f"{out / GRID}: samples of step {generator.step}, one class per row")
    for output in outputs:
        print(f"{out / FILES[output]}: {len(labels)} images")
