"""Sampling jobs: one process or several sample many images into a folder, and resume after an interruption.

The files in the folder are the only record of the progress.

    job.json              all settings that decide the images; a job with other settings is refused
    images/000000.png     with `png`: image 0, and so on; a file with this name is complete
    batches/000007.npy    with `npz`: the images of batch 7, until the archive is written
    samples.npz           with `npz`: all images and their labels, written once all batches are there

Process p of P samples the batches p, p + P, ...; process 0 completes the job: it waits for all batches, writes
samples.npz and removes batches/. While it writes samples.npz, the images take twice their size on the disk.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from rar_jax.generation.generator import Generator
from rar_jax.generation.job_folder import JobFolder
from rar_jax.progress import Progress
from rar_jax.sampling.options import Options
from rar_jax.sampling.pace import Pace
from rar_jax.sampling.sampler import pad_numbers

# Number of batches that are being fetched and written while the next one is sampled.
_WRITING = 2


def run_job(
    generator: Generator,
    labels: np.ndarray,
    folder: epath.PathLike,
    *,
    seed: int,
    options: Options,
    batch_size: int,
    outputs: Sequence[str],
    shown: Sequence[int],
    process_index: int = 0,
    process_count: int = 1,
    on_pace: Callable[[Pace], None] = lambda pace: None,
) -> np.ndarray | None:
    """Samples the unfinished images of this process's share of a job; process 0 then completes the job.

    While a batch is sampled, the batch before it is decoded to images, and earlier batches are written.

    Args:
      generator: the model.
      labels: int [N], the labels of all images; image k is the one that `Generator.generate` gives for the seed.
      folder: the job's folder.
      seed: seed of all draws.
      options: sampling options.
      batch_size: images sampled at once; rounded up to a multiple of the devices, and no more than needed.
      outputs: some of `FILES`.
      shown: numbers of the images to return, at least one.
      process_index: number of this process, from 0.
      process_count: number of processes that share the job.
      on_pace: see `sampling.sampler.sample_tokens`.

    Returns:
      The images `shown`, uint8 [len(shown), H, W, 3], in process 0; None in the others.

    Raises:
      UserError: an argument cannot be used, or the folder belongs to another job.
      OSError: the disk is full or broken. Complete files stay, and the same call resumes the job.
    """
    sampler = generator.sampler
    # Raises a UserError for options that do not fit the model before the folder is created.
    options.traced(sampler.model.config, seed), options.plan(sampler.model.config)
    batch_size = sampler.batch_size(batch_size, len(labels))
    plan = generator.origin | _plan_of_labels(labels, sampler.model.config.num_classes) | {"seed": seed}
    plan |= dataclasses.asdict(options)
    plan |= {"batch_size": batch_size, "devices": sampler.mesh.size, "outputs": ",".join(outputs)}
    with JobFolder(folder, plan, labels, batch_size, outputs, process_index, process_count) as job:
        _sample(generator, labels, job, seed, options, batch_size, on_pace)
        if process_index:
            return None
        job.complete()
        return job.read(shown)


def _plan_of_labels(labels: np.ndarray, num_classes: int) -> dict[str, str | int]:
    """Returns what the plan of a job says of its labels, int [N]."""
    classes = list(dict.fromkeys(labels.tolist()))
    return {
        "classes": "all" if classes == [*range(num_classes)] else ",".join(map(str, classes)),
        "num": len(labels),
        "labels": hashlib.sha256(np.asarray(labels, "<i4").tobytes()).hexdigest()[:12],
    }


def _sample(
    generator: Generator,
    labels: np.ndarray,
    job: JobFolder,
    seed: int,
    options: Options,
    batch_size: int,
    on_pace: Callable[[Pace], None],
) -> None:
    """Samples and writes this process's unfinished batches."""
    todo, share = job.own_batches()
    progress = Progress("sample", share, done=share - job.count(todo), unit="image")
    writer = concurrent.futures.ThreadPoolExecutor(1)
    writing = collections.deque()

    def settle(left):
        """Waits until at most `left` batches are being written, and raises the errors of those that failed."""
        while len(writing) > left or (writing and writing[0][1].done()):
            batch, written = writing.popleft()
            written.result()
            progress.update(job.count([batch]))

    def write(batch, images):
        job.write(batch, images())

    def begin(batch):
        numbers = pad_numbers(job.numbers(batch), batch_size)
        return batch, *generator.sampler.decode(labels[numbers], numbers, seed, options)

    try:
        # In pairs, so that the devices begin the next batch before the images of this one are decoded and written.
        for (batch, codes, pace), _ in itertools.pairwise(itertools.chain(map(begin, todo), [None])):
            count = job.count([batch])
            images = generator.tokenizer.begin_decode(np.asarray(codes)[:count])
            if pace is not None:
                on_pace(Pace(*(np.asarray(each)[:count] for each in pace)))
            writing.append((batch, writer.submit(write, batch, images)))
            settle(_WRITING)
        settle(0)
    finally:
        writer.shutdown(cancel_futures=True)
        progress.close()
