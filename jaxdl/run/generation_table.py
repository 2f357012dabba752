"""What samples are worth: by every sampler, in every number of steps, at every guidance."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time

import jax
import numpy as np

from jaxdl.errors import UserError
from jaxdl.models import UNet
from jaxdl.run.cli import VerbConfig, from_json
from jaxdl.run.generation import GenerationConfig, check_sampling
from jaxdl.run.generation_report import TRAINING, Real, frechet
from jaxdl.run.generator import Sampling, SolverName, load_generator
from jaxdl.run.images import load
from jaxdl.run.judge import read_judge
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig(VerbConfig):
    """Options of `measure`; of several, all combinations are measured."""

    sampler: tuple[SolverName, ...] = ("dpm",)
    """How to get from one noise level to the next."""
    steps: tuple[int, ...] = (20,)
    """Steps from noise to picture."""
    guidance: tuple[float, ...] = (1.0,)
    """1 is the network as it is, more exaggerates what it was told."""
    count: int = 1000
    """Samples of each, one for each of as many test images, of its class."""
    seed: int = 0
    """The same seed draws the same pictures."""


def measure(options: MeasureConfig) -> None:
    """Prints a row for each combination, and appends it to samples/measured.jsonl in the run.

    The judge is the run's own. `frechet` is the distance of samples to training images in its
    features, beside that of as many test images to them.
    """
    generator, _ = load_generator(options.workdir, UNet)
    for steps in options.steps:
        check_sampling(generator, options.count, steps)
    workdir = Workdir(options.workdir)
    config = from_json(GenerationConfig, workdir.config()["config"])
    judge = read_judge(workdir.path / "judge")
    if judge is None:
        raise UserError(f"{workdir.path / 'judge'} holds no judge: the run trains one at its end")
    data = load(config)
    test = Real.of(config, data.test, options.count)
    of_train = judge.look(Real.of(config, data.train, TRAINING).images)
    real = judge.look(test.images)
    floor = frechet(real.features, of_train.features)
    accuracy = float(np.mean(real.classes == test.labels))
    say(row("sampler", "steps", "guidance", "accuracy", "frechet", "seconds"))
    say(row("real test images", "", "", f"{accuracy:.2%}", f"{floor:.3f}", ""))
    workdir.samples.mkdir(exist_ok=True)
    with (workdir.samples / "measured.jsonl").open("a") as lines:
        for how in map(
            Sampling._make, itertools.product(options.sampler, options.steps, options.guidance)
        ):
            started = time.monotonic()
            images = generator.sample(test.labels, jax.random.key(options.seed), how)
            seconds, seen = time.monotonic() - started, judge.look(images)
            found = {
                "conditional_accuracy": float(np.mean(seen.classes == test.labels)),
                "judge_accuracy": accuracy,
                "frechet": frechet(seen.features, of_train.features),
                "frechet_floor": floor,
                "seconds": seconds,
            }
            about = {"count": len(images), "seed": options.seed}
            lines.write(json.dumps(how._asdict() | found | about) + "\n")
            lines.flush()
            told = f"{found['conditional_accuracy']:.2%}", f"{found['frechet']:.3f}"
            say(row(how.sampler, how.steps, f"{how.guidance:g}", *told, f"{seconds:.1f}"))


def row(what: object, *cells: object) -> str:
    """Lays cells out as the others of their column."""
    return f"{what:<18}" + "".join(f"{cell:>10}" for cell in cells)
