"""What samples are worth: by every sampler, in every number of steps, at every guidance."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time

import jax

from jaxdl.errors import UserError
from jaxdl.models import UNet
from jaxdl.run.cli import VerbConfig, from_json
from jaxdl.run.generation import GenerationConfig, check_sampling
from jaxdl.run.generation_report import TRAINING, Real, judged
from jaxdl.run.generator import BATCHES, Generator, Sampling, SolverName, load_generator
from jaxdl.run.images import load
from jaxdl.run.judge import read_judge
from jaxdl.run.progress import say
from jaxdl.run.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig(VerbConfig):
    """Options of `measure`; of several, all combinations are measured."""

    sampler: tuple[SolverName, ...] = ()
    """How to get from one noise level to the next [default: as the run]."""
    steps: tuple[int, ...] = ()
    """Steps from noise to picture [default: as the run]."""
    guidance: tuple[float, ...] = ()
    """1 is the network as it is, more exaggerates what it is told [default: as the run]."""
    count: int = 1000
    """Samples of each, of the classes of as many test images, or of all where there are fewer."""
    seed: int = 0
    """The same seed draws the same pictures."""

    def ways(self, generator: Generator) -> list[Sampling]:
        """Lists the combinations; of what is not given there is one, the run's own."""
        own = zip(Sampling._fields, generator.how, strict=True)
        given = [getattr(self, name) or (value,) for name, value in own]
        return [*map(Sampling._make, itertools.product(*given))]


def measure(options: MeasureConfig) -> None:
    """Prints a row for each combination, and appends it to samples/measured.jsonl in the run.

    The judge is the run's own. `frechet` is the distance of samples to training images in its
    features, beside that of as many test images to them. Seconds are without compilation.
    """
    generator, _ = load_generator(options.workdir, UNet)
    ways, labelled = options.ways(generator), generator.guidable
    for how in ways:
        check_sampling(generator, options.count, how)
    workdir = Workdir(options.workdir)
    config = from_json(GenerationConfig, workdir.config()["config"])
    judge = read_judge(workdir.judge)
    if judge is None:
        raise UserError(f"{workdir.judge} holds no judge: the run trains one at its end")
    data = load(config)
    test = Real.of(config, data.test, options.count)
    of_train = judge.look(Real.of(config, data.train, TRAINING).images)
    of_test = judge.look(test.images)
    real = judged(of_test, of_train, of_test, test.labels, labelled=labelled)
    say(row("sampler", "steps", "guidance", "accuracy", "frechet", "seconds"))
    say(row(f"{len(test.images)} test images", "", "", *cells(real), ""))
    workdir.samples.mkdir(exist_ok=True)
    with (workdir.samples / "measured.jsonl").open("a") as lines:
        for how in ways:
            draw = functools.partial(generator.sample, key=jax.random.key(options.seed), how=how)
            for size in {min(len(test.labels), BATCHES[-1]), len(test.labels) % BATCHES[-1]} - {0}:
                draw(test.labels[:size])  # compiles what a whole batch takes, and what is left over
            started = time.monotonic()
            images = draw(test.labels)
            seconds = time.monotonic() - started
            found = judged(judge.look(images), of_train, of_test, test.labels, labelled=labelled)
            about = {"seconds": seconds, "count": len(images), "seed": options.seed}
            lines.write(json.dumps(how._asdict() | found | about) + "\n")
            lines.flush()
            told = how.sampler, how.steps, f"{how.guidance:g}", *cells(found), f"{seconds:.1f}"
            say(row(*told))


def cells(found: dict[str, float]) -> tuple[str, str]:
    """Writes accuracy, where there is one, and distance."""
    right = found.get("conditional_accuracy")
    return "" if right is None else f"{right:.2%}", f"{found['frechet']:.3f}"


def row(what: object, *cells: object) -> str:
    """Lays cells out as the others of their column."""
    return f"{what:<18}" + "".join(f"{cell:>10}" for cell in cells)
