"""Checkpoints by Orbax, made strict: what is restored is exactly what was saved, or it is told.

Beside the arrays, each checkpoint holds a small JSON record: the shape, type and checksum of every
leaf, and the running totals of the metrics, so that a resumed run also logs what an uninterrupted
one would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from jaxdl.errors import UserError
from jaxdl.train.checksum import checksums
from jaxdl.train.state import TrainState, leaf_name
from jaxdl.types import PyTree

Record = dict[str, Any]


class Mismatch(Exception):
    """A checkpoint that cannot be used for this run; the text says why."""


@dataclasses.dataclass
class _LatestOf:
    """The policy of keeping the latest n of those checkpoints whose step is `chosen`."""

    n: int
    chosen: Callable[[int], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells of each checkpoint, in the order of their steps, whether it is kept."""
        del context
        kept = [c.step for c in checkpoints if self.chosen(c.step)][-self.n :]
        return [c.step in kept for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run, a folder a step.

    The latest `keep` are kept, so are the latest `keep` whose step is a milestone, whatever was
    saved between them, and the best one; a metric that is not finite is worse than any that is.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        milestone: Callable[[int], bool] | None = None,
        best: tuple[str, Literal["max", "min"]] | None = None,
        read_only: bool = False,
    ):
        self.directory = Path(directory).absolute()
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every save at length
        # With best_fn and max_to_keep Orbax deletes the newest checkpoint when the metric worsens
        # (orbax issue 526); a union of policies keeps both ends.
        kept: list = [policies.LatestN(keep)]
        if milestone is not None:
            kept.append(_LatestOf(keep, milestone))
        if best is not None:
            name, mode = best
            sign = 1 if mode == "max" else -1

            def score(metrics: dict[str, float]) -> float:
                return sign * metrics[name] if math.isfinite(metrics[name]) else -math.inf

            kept.append(
                policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
            )
        # Writing beside the training is safe where the device holds its own copy; on CPU the
        # buffers that Orbax would be reading are the ones that the next step is given.
        asynchronous = jax.default_backend() != "cpu"
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            enable_async_checkpointing=asynchronous and not read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "record")
        )

    @property
    def steps(self) -> list[int]:
        """The steps at hand, ascending."""
        return sorted(self._manager.all_steps(read=False))

    def save(
        self,
        step: int,
        state: TrainState,
        progress: Record,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves `state` as `step`, with the running totals `progress`; does nothing if it is there.

        A save that is killed leaves no checkpoint behind; the ones before stay as they are.
        Raises UserError where the disk is full.
        """
        if step in self.steps:
            return
        tree = _storable(state)
        if jax.process_count() == 1 and jax.device_count() > 1:
            # Orbax has replicas share the writing, by a program compiled for each array and device;
            # that serves many hosts, and costs one its first seconds.
            tree = jax.device_get(tree)
        record = {"leaves": _describe(tree), "progress": progress}
        with _told_when_full(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record)
                ),
                metrics=metrics,
                force=True,
            )

    def restore(
        self,
        template: TrainState,
        *,
        step: int | None = None,
        tell: Callable[[str], None] = print,
        set_aside: bool = False,
    ) -> tuple[TrainState, Record] | None:
        """Restores the newest usable state, or the one of `step`; None where there is none at all.

        `template` gives structure, shapes, types and shardings; its arrays may be abstract. A
        checkpoint that cannot be read, or is another model's, is told and the one before is used;
        with `set_aside` it is renamed out of the way, never deleted.

        Raises UserError where checkpoints exist and none can be used.
        """
        steps = self.steps if step is None else [step]
        refused: list[tuple[int, str]] = []
        for candidate in reversed(steps):
            why, restored = "another process cannot use it", None
            try:
                restored = self._restore(candidate, template)
            except Mismatch as error:
                why = str(error)
            if not _everywhere(restored is not None) or restored is None:
                refused.append((candidate, why))
                continue
            for bad, why in refused:
                tell(f"checkpoint {bad} is not usable ({why}): going back to {candidate}")
                if set_aside and jax.process_index() == 0:
                    _set_aside(self.directory / str(bad))
            if refused and set_aside:
                _everywhere(True)  # the first has renamed them
                self._manager.reload()
            return restored
        if refused:
            bad, why = refused[0]
            raise UserError(
                f"no checkpoint in {self.directory} can be used; the newest, {bad}: {why}"
                " (another --workdir or --overwrite starts anew)"
            )
        return None

    def _restore(self, step: int, template: TrainState) -> tuple[TrainState, Record]:
        tree = _storable(template)
        try:
            record = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
            saved = record["record"]["leaves"]
        except Exception as error:
            raise Mismatch(f"its record cannot be read: {_first_line(error)}") from error
        _compare(saved, tree)
        try:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            restored = self._manager.restore(step, args=args)["state"]
        except Exception as error:  # Orbax and TensorStore raise a dozen types here
            raise Mismatch(f"its arrays cannot be read: {_first_line(error)}") from error
        _verify(saved, restored)
        state = dataclasses.replace(restored, key=jax.random.wrap_key_data(restored.key))
        return state, record["record"]["progress"]

    def close(self) -> None:
        """Waits for a save that is under way, and releases the folder."""
        with _told_when_full(self.directory):
            self._manager.wait_until_finished()
        self._manager.close()


def _everywhere(condition: bool) -> bool:
    """Tells whether a condition holds in all processes, which wait here for each other."""
    return bool(multihost_utils.process_allgather(np.array([condition])).all())


def _set_aside(folder: Path) -> None:
    """Renames a checkpoint to N.unusable, or to N.unusable.2 and on where that is taken."""
    names = itertools.chain(["unusable"], (f"unusable.{n}" for n in itertools.count(2)))
    aside = (folder.with_name(f"{folder.name}.{name}") for name in names)
    folder.rename(next(path for path in aside if not path.exists()))


def _storable(state: TrainState) -> TrainState:
    """Replaces the typed key, which is no plain array, by its words."""
    if not isinstance(state.key, jax.ShapeDtypeStruct):
        return dataclasses.replace(state, key=jax.random.key_data(state.key))
    words = jax.eval_shape(jax.random.key_data, state.key)
    # The words lie where the key does, which on another machine is not where they were saved.
    words = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=state.key.sharding)
    return dataclasses.replace(state, key=words)


def _leaves(tree: PyTree) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield leaf_name(path), leaf


def _describe(tree: PyTree) -> dict[str, list]:
    """Lists the shape, type and checksum of every leaf."""
    return {
        name: [list(leaf.shape), str(leaf.dtype), total]
        for (name, leaf), total in zip(_leaves(tree), checksums(tree), strict=True)
    }


def _compare(saved: dict[str, list], tree: PyTree) -> None:
    """Raises Mismatch naming the first leaf that differs in presence, shape or type."""
    wanted = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in _leaves(tree)}
    for name in [*wanted, *saved]:
        there, here = saved.get(name), wanted.get(name)
        if there is None or here is None or (there[0], there[1]) != here:
            described = ["absent" if x is None else f"{x[1]}{tuple(x[0])}" for x in (there, here)]
            raise Mismatch(f"{name} is {described[0]} there and {described[1]} in this run")


def _verify(saved: dict[str, list], tree: PyTree) -> None:
    """Raises Mismatch where an array is not, bit for bit, the one that was saved."""
    for (name, _), total in zip(_leaves(tree), checksums(tree), strict=True):
        if saved[name][2] != total:
            raise Mismatch(f"{name} is damaged: its checksum differs")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _told_when_full(directory: Path) -> Iterator[None]:
    """Turns the many faces of a full disk into one line."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "Disk quota" in str(error):
            raise UserError(
                f"no space left for a checkpoint in {directory}: the ones before are kept;"
                " make room and run the same command again"
            ) from error
        raise
