"""The command line of every experiment:  [VERB] [PRESET] [--options].

Verbs: `train` (the default) and `evaluate`, which every experiment has, and its own. Mistakes are
told in one line and end with status 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from jaxdl.backend import CompilationCache, require_devices
from jaxdl.errors import RunFailed, UserError
from jaxdl.malloc import keep_memory
from jaxdl.run import hosts
from jaxdl.run.config import HostsConfig, RunConfig, flag, identity, to_json
from jaxdl.run.experiment import Experiment, Session
from jaxdl.run.progress import end_line, phase, say, spoken_log
from jaxdl.run.workdir import Workdir
from jaxdl.train.state import TrainState

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerbConfig:
    """Options of every verb that uses what was trained."""

    workdir: Path
    """Folder of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(VerbConfig, HostsConfig):
    """Options of `evaluate`."""

    step: int | None = None
    """Evaluate the checkpoint of this step [default: the newest]."""
    mesh: str | None = None
    """Devices, by axis, e.g. data=1 [default: as the run was trained]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """An experiment script: its name, its presets (the first is the default), and its verbs.

    A verb is a function of one dataclass of options, a `VerbConfig`, which its annotation names.
    """

    name: str
    presets: Mapping[str, Any]
    build: Callable[[Any], Experiment]
    verbs: Mapping[str, Callable[[Any], None]] = dataclasses.field(default_factory=dict)

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Runs the command line; ends the process with status 1, 2, 130 or 143 where it fails."""
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        keep_memory()
        try:
            with spoken_log():
                self._dispatch(arguments)
        except UserError as error:
            leave(2, error)
        except RunFailed as error:
            leave(1, error)
        except KeyboardInterrupt:  # before or after training, when there is nothing to save
            leave(130)
        except BrokenPipeError:  # nobody reads on, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                leave(2, f"no space left ({error}): make room and run the same command again")
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
                leave(2, f"{error.filename}: {error.strerror}")
            raise

    def _dispatch(self, arguments: list[str]) -> None:
        given = tuple(arguments)
        verbs = {"train": self.train, "evaluate": self.evaluate, **self.verbs}
        verb = arguments.pop(0) if arguments and arguments[0] in verbs else "train"
        if verb != "train":
            options = typing.get_type_hints(verbs[verb])["options"]
            verbs[verb](parse(options, arguments, prog=f"{self.name} {verb}"))
            return
        preset = next(iter(self.presets))
        if arguments and not arguments[0].startswith("-"):
            preset = arguments.pop(0)
            if preset not in self.presets:
                known = [*self.presets, *verbs]
                raise UserError(f"no preset or verb {preset!r}{nearest(preset, known)}")
        default = self.presets[preset]
        about = f"Presets: {', '.join(self.presets)}. Verbs: {', '.join(verbs)}."
        config = parse(type(default), arguments, prog=self.name, default=default, description=about)
        if config.dry_run:
            self.dry_run(config, again=functools.partial(self.main, given))
            return
        self.train(preset, config)

    def dry_run(self, config: RunConfig, *, again: Callable[[], None]) -> None:
        """Compiles a step for the config's mesh and says what it takes; leaves no folder behind."""
        from jaxdl.run.dry_run import dry_run

        CompilationCache()
        if status := dry_run(config, lambda: self._session(config), again):
            raise SystemExit(status)

    def train(self, preset: str, config: RunConfig) -> None:
        """Trains, or resumes, in the config's workdir."""
        with hosts.joined(config):
            self._train(preset, config)

    def _train(self, preset: str, config: RunConfig) -> None:
        from jaxdl.run.finish import summary
        from jaxdl.run.train import train

        require_devices()
        workdir = Workdir(config.workdir or Path("runs") / f"{self.name}-{preset}")
        run: dict[str, Any] = {
            "experiment": self.name, "identity": identity(config), "overwrite": config.overwrite
        }  # fmt: skip
        report = None
        if hosts.is_first():
            workdir.check(**run)  # before the data, which may take minutes
            report = None if config.overwrite else workdir.report()
        if hosts.by_first(report is not None):
            test = report["test"] if report else {}
            say(f"{workdir.path} is complete: {summary(test)} (--overwrite starts anew)")
            return
        cache = CompilationCache()
        session = self._session(config)
        with (
            workdir.of_this_process() as workdir,
            workdir.claimed(preset=preset, config=to_json(config), **run),
        ):
            hosts.barrier("workdir")  # what is in it is settled
            say(f"{'workdir':<10}{workdir.path}")
            if config.warmup > session.steps:
                say(f"{'warmup':<10}ends after the run: {config.warmup} steps of {session.steps}")
            train(session, workdir, cache)

    def evaluate(self, options: EvaluateConfig) -> None:
        """Evaluates a checkpoint of a run on the test set, and draws its figures."""
        with hosts.joined(options):
            self._evaluate(options)

    def _evaluate(self, options: EvaluateConfig) -> None:
        from jaxdl.run.finish import summary

        require_devices()
        CompilationCache()
        workdir = Workdir(options.workdir)
        about = workdir.config()
        if about["experiment"] != self.name:
            raise UserError(f"--workdir {options.workdir} is a run of {about['experiment']}")
        config = from_json(type(next(iter(self.presets.values()))), about["config"])
        session = self._session(dataclasses.replace(config, mesh=options.mesh or config.mesh))
        state = newest(session, workdir, options.step)
        experiment = session.experiment
        test = session.evaluator()(state)
        with workdir.of_this_process() as workdir:
            workdir.figures.mkdir(exist_ok=True)
            test |= experiment.finish(state, workdir, session.placement).get("test", {})
        say(f"step {int(state.step)}: {summary(test)}")

    def _session(self, config: RunConfig) -> Session:
        with phase("data") as note:
            session = Session.start(self.build(config), config)
            experiment = session.experiment
            note.text = (
                f"{experiment.dataset}: {experiment.train.examples:,} training and"
                f" {experiment.test.examples:,} test examples"
            )
        return session


def newest(session: Session, workdir: Workdir, step: int | None) -> TrainState:
    """Restores the newest usable checkpoint of a run, or the one of `step`; changes nothing."""
    if not workdir.checkpoints.is_dir():
        raise UserError(f"--workdir {workdir.path} has no checkpoint yet: train first")
    with contextlib.closing(session.checkpoints(workdir, read_only=True)) as checkpoints:
        if step is not None and step not in checkpoints.steps:
            raise UserError(f"--step {step}: there are checkpoints of {checkpoints.steps}")
        found = checkpoints.restore(session.abstract_state(), step=step, tell=say)
    if found is None:
        raise UserError(f"--workdir {workdir.path} has no checkpoint yet: train first")
    return found[0]


def leave(status: int, error: object = None) -> NoReturn:
    """Ends the process; the error, if any, is told in one line."""
    end_line()
    if error is not None:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(status) from (error if isinstance(error, Exception) else None)


def parse(cls: type[T], arguments: Sequence[str], *, prog: str, **kwargs: Any) -> T:
    """Parses options into a dataclass by tyro; raises UserError with one line where it cannot."""
    names = [flag(field.name) for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    switches = [f"--no-{name[2:]}" for name in names]
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in {*names, *switches, "--help"}:
            raise UserError(f"no option {option}{nearest(option, names)}")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                cls, args=list(arguments), prog=f"python -m experiments.{prog}", **kwargs
            )
    except SystemExit as leaving:
        if leaving.code == 2:
            raise UserError(plain(told.getvalue())) from None
        raise


def nearest(word: str, known: Sequence[str]) -> str:
    """Suggests what was meant, or lists what there is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def plain(boxed: str) -> str:
    """Takes the frame, its title and the line breaks out of tyro's message."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    # The frame is of spaces and hyphens where the output is not UTF-8.
    lines = [line.strip(" │╭╮╰╯") for line in text.splitlines()]
    _, *lines = [line for line in lines if line.strip("─-")] or [""]
    message = re.split(r"\.? (?:Argument helptext:|For full helptext)", " ".join(lines))[0]
    message = re.sub(r"^(Error parsing )?(\w+: (?=--))?", "", message)
    return message or "the options cannot be parsed"


def from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """Rebuilds a config from config.json, lists back to tuples and text back to paths."""
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def revive(name: str, value: Any) -> Any:
        if value is not None and Path in (hints[name], *typing.get_args(hints[name])):
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: revive(name, value) for name, value in values.items() if name in fields})
