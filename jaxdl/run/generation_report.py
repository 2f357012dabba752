"""What generated images are reported with: a judge's word, distances to real ones, and figures.

All of it is computed offline, by the project's own classifier. FID, which is of another network's
features, is reported where its weights are given. Distances, and what else depends on how many
images there are, come with what real images, held out, and as many of them, get.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from jaxdl.data import Source
from jaxdl.run.generator import Generator, Given, Sampling
from jaxdl.run.images import ImageConfig
from jaxdl.run.inception import InceptionFeatures
from jaxdl.run.judge import Judge, Seen, pictures
from jaxdl.run.pictures import save_film, save_picture, sheet
from jaxdl.run.progress import say
from jaxdl.types import Key

SIDE = 64  # pixels of a picture in a figure, about
TRAINING = 20_000  # training images whose features samples are held against, at most
PART = 2048  # images that are compared, or read, at once


class Real(NamedTuple):
    """Real images in [0, 1], of the size of generated ones."""

    images: Float[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"]

    @classmethod
    def of(cls, config: ImageConfig, source: Source, most: int) -> Real:
        """Reads `most` examples from all over a set, or all where there are fewer."""
        numbers = np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)
        parts = zip(*parts_of(config, source, numbers), strict=True)
        return cls(*map(np.concatenate, parts))


def parts_of(
    config: ImageConfig, source: Source, numbers: Sequence[int] | np.ndarray
) -> Iterator[Real]:
    """Reads examples by their numbers, a part at a time."""
    prepare = jax.jit(lambda images: pictures(config, images))
    for start in range(0, len(numbers), PART):
        rows = [source[int(i)] for i in numbers[start : start + PART]]
        images = np.asarray(prepare(np.stack([row["image"] for row in rows])))
        yield Real(images, np.array([row["label"] for row in rows], np.int32))


def trained_on(config: ImageConfig, source: Source) -> Iterator[Float[np.ndarray, "_ h w c"]]:
    """Goes through all that training has seen: the images, and their mirror images if it flips."""
    for part in parts_of(config, source, range(len(source))):
        yield part.images
        if config.flip:
            yield part.images[:, :, ::-1]


def report_samples(
    generator: Generator, judge: Judge, train: Real, test: Real, *,
    originals: Iterable[Float[np.ndarray, "_ h w c"]], how: Sampling, key: Key, figures: Path,
    labelled: bool, inception: InceptionFeatures | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Samples an image for each test label, measures them, draws figures; returns the numbers.

    `conditional_accuracy` is the share of samples that the judge takes for their label, beside
    `judge_accuracy` on the test set. `frechet` is the distance of samples to the training set in
    the judge's features, beside `frechet_floor` of the test set to it. `diversity` and `novelty`
    are 1 where samples are as diverse, and as far from the nearest of `originals`, as test images
    are, and 0 where they are all alike, or copies. With `inception`, `fid` and `fid_floor`
    are the same two distances in its features (Heusel et al. 2017, arXiv:1706.08500).
    """
    images = generator.sample(test.labels, key, how)
    seen, of_train, of_test = (judge.look(x) for x in (images, train.images, test.images))
    # Samples and test images at once: the originals are gone through but once.
    nearest, distances = neighbours(np.concatenate([images, test.images]), originals)
    numbers = judged(seen, of_train, of_test, test.labels, labelled=labelled)
    of_samples, of_real = np.split(distances, 2)
    numbers["novelty"] = float(of_samples.mean() / of_real.mean())
    groups = test.labels if labelled else seen.classes
    numbers["diversity"] = spread(seen, groups) / spread(of_test, test.labels)
    if inception is not None:
        real = inception(train.images)
        numbers["fid"] = frechet(inception(images), real)
        numbers["fid_floor"] = frechet(inception(test.images), real)
    pairs = np.stack([images, nearest[: len(images)]], axis=1)
    draw_pairs(pairs, test.labels, figures / "neighbours.png")
    say(f"{'samples':<10}{len(images):,}, {how}: {figures}")
    return {"test": numbers, "sampling": how._asdict()}


def judged(
    seen: Seen, of_train: Seen, of_test: Seen, labels: Int[np.ndarray, " b"], *, labelled: bool
) -> dict[str, float]:
    """Compares what the judge makes of samples with what it makes of real images, see above.

    Samples that no label was asked of have no `conditional_accuracy`.
    """
    numbers = {
        "judge_accuracy": float(np.mean(of_test.classes == labels)),
        "frechet": frechet(seen.features, of_train.features),
        "frechet_floor": frechet(of_test.features, of_train.features),
    }
    if labelled:
        numbers = {"conditional_accuracy": float(np.mean(seen.classes == labels)), **numbers}
    return numbers


def by_class(classes: int | None, each: int = 10) -> Int[np.ndarray, " b"]:
    """Lists labels to draw a grid of, a row a class, ten rows at most, or if there are none."""
    return np.repeat(np.arange(min(classes or 10, 10), dtype=np.int32), each)


def draw_samples(
    generator: Generator, given: Given, path: Path, *, how: Sampling, key: Key, columns: int = 10
) -> None:
    """Draws a grid of samples, one for each row of what the network is told."""
    save_picture(path, sheet(generator.sample(given, key, how), columns=columns, side=SIDE))


def draw_pairs(
    pairs: Float[np.ndarray, "b two h w c"], labels: Int[np.ndarray, " b"], path: Path
) -> None:
    """Draws samples from all over the classes, each above its nearest training image."""
    ordered = pairs[np.argsort(labels, kind="stable")]
    shown = ordered[np.linspace(0, len(pairs) - 1, 20).astype(int)]
    halves = [half.swapaxes(0, 1).reshape(-1, *pairs.shape[2:]) for half in np.split(shown, 2)]
    save_picture(path, sheet(np.concatenate(halves), columns=10, side=SIDE))


def draw_reverse(
    generator: Generator, given: Given, figures: Path, *, how: Sampling, key: Key
) -> None:
    """Draws how samples come out of noise: rows of moments as a figure, all steps as a film."""
    steps = generator.reverse(given, key, how)
    chosen = np.unique(np.linspace(0, len(steps) - 1, 11).round().astype(int))
    moments = steps[chosen].swapaxes(0, 1).reshape(-1, *steps.shape[2:])
    save_picture(figures / "reverse.png", sheet(moments, columns=len(chosen), side=SIDE))
    film = [sheet(frame, columns=5, side=SIDE) for frame in steps]
    save_film(figures / "reverse.gif", film)


# On one core: the threads of eigh wait for one another at every column, in a spin, and where others
# have the cores that takes seconds instead of a tenth of one.
@threadpool_limits.wrap(limits=1)
def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Computes the Frechet distance of two normal distributions, fitted to two sets of vectors.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982), which depends on the
    number of vectors: small sets are far from everything.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    of_a, of_b = (np.atleast_2d(np.cov(x, rowvar=False, ddof=0)) for x in (a, b))
    values, vectors = np.linalg.eigh(of_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # A B has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ of_b @ root), 0)).sum()
    gap = a.mean(0) - b.mean(0)
    return float(max(gap @ gap + np.trace(of_a) + np.trace(of_b) - 2 * shared, 0))


def neighbours(
    images: Float[np.ndarray, "b h w c"], parts: Iterable[Float[np.ndarray, "_ h w c"]]
) -> tuple[Float[np.ndarray, "b h w c"], Float[np.ndarray, " b"]]:
    """Finds each one's nearest image in any of the parts, and its Euclidean distance in pixels."""
    nearest, distances = np.empty_like(images), np.full(len(images), np.inf)
    flat = images.reshape(len(images), -1)
    for part in parts:
        rest = part.reshape(len(part), -1)
        # Squared distances, less the square of the image itself, which is the same for all.
        found = ((rest**2).sum(1) - 2 * flat @ rest.T).argmin(1)
        away = np.linalg.norm(flat - rest[found], axis=1)
        closer = away < distances
        nearest[closer], distances[closer] = part[found[closer]], away[closer]
    return nearest, distances


def spread(seen: Seen, groups: Sequence[int] | np.ndarray) -> float:
    """Computes the root of the mean squared distance of features to the mean of their group."""
    groups, squares = np.asarray(groups), 0.0
    for group in np.unique(groups):
        features = seen.features[groups == group].astype(np.float64)
        squares += float(((features - features.mean(0)) ** 2).sum())
    return (squares / len(groups)) ** 0.5
