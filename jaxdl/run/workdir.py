"""The folder of a run: its config, its logs, its checkpoints, its figures, its report.

config.json     the resolved options, versions and git commit
metrics.jsonl   a line for each logging interval, epoch and evaluation
tensorboard/    the same, for TensorBoard
checkpoints/    a folder a step
figures/        PNG
samples/        what the network made at each evaluation
model/          the trained weights: model.safetensors and config.json
judge/          of a run that generates images, what judges them
profile/        a trace, with --profile
report.json     the final numbers; its presence says that the run is complete
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.run import hosts
from jaxdl.run.config import flag

# What a run that was killed at its very beginning leaves behind.
LEFTOVERS = {".lock", "config.json.tmp"}
VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Workdir:
    """A run folder. Opening it reads; what writes needs it `claimed`.

    Raises UserError for a URL, which as a path would be a folder here, of the name `gs:`.
    """

    def __init__(self, path: str | Path, *, checkpoints: Path | None = None):
        self.path = Path(path)
        if str(path).partition("/")[0].endswith(":"):
            raise UserError(f"--workdir {path} names no local folder: mount it, and give its path")
        self.checkpoints = checkpoints or self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"
        self.model = self.path / "model"
        self.judge = self.path / "judge"
        self.profile = self.path / "profile"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"
        self._report = self.path / "report.json"

    @contextlib.contextmanager
    def of_this_process(self) -> Iterator[Workdir]:
        """Gives process 0 the folder, and any other one that vanishes, beside the same checkpoints.

        So no code that draws or writes needs to know of processes: all do the same, one for keeps.
        """
        if hosts.is_first():
            yield self
            return
        with tempfile.TemporaryDirectory(prefix="jaxdl-") as path:
            yield Workdir(path, checkpoints=self.checkpoints)

    def check(self, *, experiment: str, identity: Mapping[str, Any], overwrite: bool) -> None:
        """Raises UserError unless the folder is new, empty, or holds this very run.

        Args:
          experiment: name of the experiment.
          identity: those of its options that a resumed run must share, as JSON.
          overwrite: whether the run that is there, if any, is to be deleted.
        """
        try:
            held = {entry.name for entry in self.path.iterdir()} - LEFTOVERS
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"--workdir {self.path} cannot be used: {error.strerror}") from error
        if not held:
            return
        if not self._config.exists():
            raise UserError(
                f"--workdir {self.path} holds files but no config.json: it is no run of jaxdl;"
                " choose another folder"
            )
        there = self.config()
        if overwrite:
            return
        if there["experiment"] != experiment:
            raise UserError(
                f"--workdir {self.path} holds a run of {there['experiment']}, not of {experiment};"
                " choose another folder, or --overwrite it"
            )
        differ = [
            f"{flag(name)} {there['config'].get(name)} there, {value} now"
            for name, value in identity.items()
            if there["config"].get(name) != value
        ]
        if differ:
            raise UserError(
                f"--workdir {self.path} holds a run with other options ({'; '.join(differ)});"
                " choose another folder, or --overwrite it"
            )

    @contextlib.contextmanager
    def claimed(
        self,
        *,
        experiment: str,
        preset: str,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        overwrite: bool,
    ) -> Iterator[None]:
        """Makes the folder of a run, or takes it up, for this process alone while the block runs.

        Args:
          experiment: name of the experiment.
          preset: name of the preset that the config started from.
          config: all options, resolved, as JSON.
          identity: those of them that a resumed run must share.
          overwrite: delete the run that is there.

        Raises UserError where the folder is no run, another run, in use, or not writable.
        """
        run = {"experiment": experiment, "identity": identity, "overwrite": overwrite}
        self.check(**run)
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(self.locked())
                self.check(**run)  # again: another run may have come and gone
                if overwrite:
                    self._clear()
                if overwrite or not self._config.exists():
                    about = {"experiment": experiment, "preset": preset, "config": config}
                    about |= {"versions": versions(), "git_commit": git_commit()}
                    write_json(self._config, about)
                self.figures.mkdir(exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"--workdir {self.path} cannot be written: {error.strerror}"
                ) from error
            yield

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder of a run; the system unlocks it however the process may end.

        Raises UserError where another process has it.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"--workdir {self.path} is in use by another process: wait for it or stop it"
                ) from error
            yield

    def check_room(self, size: int) -> None:
        """Raises UserError where the disk has no room for a checkpoint of `size` bytes.

        Told beforehand it is one line; a writer that runs into it prints a hundred of its own.
        """
        free = shutil.disk_usage(self.checkpoints.parent).free
        if free < size:
            raise UserError(
                f"no space left for a checkpoint in {self.path}: it takes {size / 2**20:,.1f} MiB"
                f" of {free / 2**20:,.1f}; the ones before are kept; make room and run the same"
                " command again"
            )

    def _clear(self) -> None:
        """Deletes what the run has written; other files stay, and so does what says it is a run."""
        for path in (self._report, self._metrics):  # the report is what says that it is complete
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)
        for path in (
            self.tensorboard, self.checkpoints, self.figures, self.samples, self.model, self.judge,
            self.profile,
        ):  # fmt: skip
            if path.exists():
                shutil.rmtree(path)

    def config(self) -> dict[str, Any]:
        """Reads config.json; raises UserError where there is none, it is damaged, or no run's."""
        try:
            about = json.loads(self._config.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"--workdir {self.path} holds no run: there is no config.json"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._config} cannot be read ({error}): choose another folder, or delete this"
                " one yourself"
            ) from error
        kinds = {"experiment": str, "config": dict, "versions": dict}
        if not isinstance(about, dict) or not all(
            isinstance(about.get(name), kind) for name, kind in kinds.items()
        ):
            raise UserError(
                f"--workdir {self.path} is no run of jaxdl, whose config.json names an experiment,"
                " a config and versions: choose another folder"
            )
        return about

    def report(self) -> dict[str, Any] | None:
        """Reads the report; None while the run is not complete; UserError where it is damaged."""
        try:
            report = json.loads(self._report.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self._report} cannot be read: {error}") from error
        if not isinstance(report, dict) or not isinstance(report.get("test"), dict):
            raise UserError(
                f"{self._report} is no report of a run: delete it, and the same command writes one"
            )
        return report

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes the report, which marks the run as complete."""
        write_json(self._report, report)

    def history(self) -> list[dict[str, Any]]:
        """Reads the metrics logged so far."""
        if not self._metrics.exists():
            return []
        return [json.loads(line) for line in self._metrics.read_text().splitlines()]

    def rewind(self, step: int, *, evaluated: int) -> None:
        """Forgets the lines of metrics that a run resumed at `step` writes again.

        And what is no record, such as the line that a kill tore. `evaluated` is the last step whose
        evaluation the run remembers.
        """
        if not self._metrics.exists():
            return
        kept = []
        for text in self._metrics.read_text().splitlines(keepends=True):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # it is no record
                line = json.loads(text)
                last = evaluated if line["kind"] == "evaluation" else step
                if text.endswith("\n") and line["step"] <= last:
                    kept.append(text)
        write_text(self._metrics, "".join(kept))

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl; a number that is not finite becomes null."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(finite(line), allow_nan=False) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Replaces the numbers that JSON has no word for, NaN and the infinities, by None."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: beside it first, then renamed over it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Lists the versions that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def git_commit() -> str | None:
    """Returns the commit of the checkout that runs, "-dirty" appended where it has changes.

    None where jaxdl is installed, also where that is within somebody else's checkout.
    """
    here = Path(__file__)

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        run("ls-files", "--error-unmatch", here.name)
        return run("rev-parse", "HEAD") + ("-dirty" if run("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
