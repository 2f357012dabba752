"""The options that every experiment has."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxdl.errors import UserError
from jaxdl.train import optim
from jaxdl.train.sharding import Parallel, axis_name


def operational(default: Any) -> Any:
    """Declares an option that may change between a run and its resumption."""
    return dataclasses.field(default=default, metadata={"operational": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Options that say which processes make up a run; a run may go on with other ones."""

    coordinator: str | None = operational(None)
    """Process 0, as HOST:PORT; "auto": as JAX detects the cluster; "none": one process alone
    [default: auto under srun or mpirun with several tasks, else none]."""
    num_processes: int | None = operational(None)
    """Processes of the run, with --coordinator HOST:PORT."""
    process_id: int | None = operational(None)
    """Number of this one, from 0, with --coordinator HOST:PORT."""
    barrier_seconds: float = operational(300.0)
    """How long processes wait for each other at start, save and exit before they name who is
    missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(HostsConfig):
    """Options that every experiment has; each experiment adds its own below them."""

    workdir: Path | None = operational(None)
    """Folder of the run [default: runs/EXPERIMENT-PRESET]. The same command resumes in it."""
    overwrite: bool = operational(False)
    """Delete the run that is in the folder and start anew."""

    seed: int = 0
    """Seed of the initialisation and of every draw; the order of the data too."""
    epochs: float = 10
    """Passes over the training data."""
    batch_size: int = 64
    """Examples a step, over all devices."""
    eval_batch_size: int = operational(256)
    """Examples a batch in evaluation; it changes no number."""
    accum: int = 1
    """Microbatches that each batch is split into, to save memory."""

    optimizer: Literal["adam", "adamw", "sgd", "rmsprop", "muon"] = "adam"
    """adam, sgd and rmsprop couple the weight decay into the gradient; adamw and muon do not."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Weight decay, coupled or not as the optimizer has it."""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup: int = 0
    """Steps over which the learning rate rises."""
    clip_norm: float | None = None
    """Clip the gradient's global norm to this."""
    ema_decay: float | None = None
    """Decay of a moving average of the parameters, which is then what is evaluated and exported."""
    precision: Literal["float32", "bf16"] = "float32"
    """Type to compute in; parameters and softmax stay float32. bf16 is for GPU and TPU."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop the run, or skip the step."""

    log_every: int = 50
    """Steps between lines of metrics."""
    eval_every: int = 0
    """Steps between evaluations [0: an epoch]."""
    scan: int = 0
    """Steps in one XLA program [0: log_every on accelerators for resident data, else 1]."""

    save_minutes: float = operational(5.0)
    """Save at every evaluation, and whenever this many minutes have passed since the last save."""
    keep: int = operational(2)
    """Latest checkpoints to keep; as many of the latest evaluations are kept too, and the best."""
    mesh: str = operational("data=-1")
    """Devices by axis, e.g. data=4,fsdp=2 [-1: the rest]: data and fsdp split each batch, fsdp and
    tensor the model too."""
    parallel: Parallel = operational("jit")
    """The step as one program over the mesh (jit), or as one a device (pmap, shard_map)."""
    dry_run: bool = operational(False)
    """Compile only, for any --mesh, also one larger than this machine, and print what a step would
    compute, hold and send."""
    profile: bool = operational(False)
    """Trace one logging interval with JAX's profiler, into the folder's profile/."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        positive = (
            "epochs",
            "batch_size",
            "eval_batch_size",
            "accum",
            "learning_rate",
            "log_every",
            "keep",
            "barrier_seconds",
        )
        for name in positive:
            self._require(0 < getattr(self, name) < math.inf, name, "must be above 0, and finite")
        for name in ("seed", "weight_decay", "warmup", "eval_every", "scan", "save_minutes"):
            meant = 0 <= getattr(self, name) < math.inf
            self._require(meant, name, "must be 0 or more, and finite")
        self._require(self.seed < 2**32, "seed", "must be below 2**32")
        if self.ema_decay is not None:
            self._require(0 < self.ema_decay < 1, "ema_decay", "must lie between 0 and 1")
        if self.clip_norm is not None:
            self._require(0 < self.clip_norm < math.inf, "clip_norm", "must be above 0, and finite")

    def _require(self, condition: bool, name: str, what: str) -> None:
        if not condition:
            raise UserError(f"{flag(name)} {what}, got {getattr(self, name)}")

    @property
    def dtype(self) -> Any:
        """The type that models compute in."""
        return jnp.bfloat16 if self.precision == "bf16" else jnp.float32

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that the step sums over, and a batch normalisation; None under jit."""
        return axis_name(self.parallel)

    def optimiser(self, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """Makes the optimiser for a run of `steps` steps, and its schedule, for the log."""
        schedule = optim.SCHEDULES[self.schedule](
            self.learning_rate, warmup=self.warmup, steps=steps
        )
        tx = optim.OPTIMIZERS[self.optimizer](schedule, decay=self.weight_decay)
        return optim.clipped(tx, self.clip_norm), schedule


def flag(name: str) -> str:
    """Spells a field as its option: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def to_json(config: RunConfig) -> dict[str, Any]:
    """Lists the fields of a config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def identity(config: RunConfig) -> dict[str, Any]:
    """Lists the fields that make a run the run it is: all but the operational ones."""
    fixed = {f.name for f in dataclasses.fields(config) if not f.metadata.get("operational")}
    return {name: value for name, value in to_json(config).items() if name in fixed}
