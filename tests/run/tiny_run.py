"""A run of the command line that takes seconds, and what it leaves behind."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.image_classification import SCRIPT, Config
from jaxdl.run.cli import from_json, newest
from jaxdl.run.experiment import Session
from jaxdl.run.workdir import Workdir

ROOT = Path(__file__).parents[2]
# 34 steps, evaluated after 10, 20, 30 and 34, logged after every 7, saved at each of them.
STEPS = 34
TINY = (
    "digits-mlp", "--widths", "16", "--epochs", "1.5", "--warmup", "5", "--log-every", "7",
    "--eval-every", "10", "--save-minutes", "0",
)  # fmt: skip
# One evaluation, one save: for what is not about those.
QUICK = ("digits-mlp", "--widths", "16", "--epochs", "0.3", "--log-every", "3")


def main(*arguments):
    SCRIPT.main([str(argument) for argument in arguments])


def ended(capsys, status, *arguments):
    """Runs a command that is to fail, asserts how, and returns its one line of complaint."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main(*arguments)
    out, err = capsys.readouterr()
    assert leaving.value.code == status, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in out + err
    return lines[0]


def refused(capsys, *arguments):
    return ended(capsys, 2, *arguments)


def killed_at(moment, *arguments):
    """Runs the command in a process of its own, which SIGKILL ends at `moment`."""
    command = [sys.executable, "-m", "tests.run.killed", moment, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == -9, done.stdout + done.stderr
    return done.stdout


def open_run(path, **changes):
    """Opens a run as its own command would: the session, and the folder."""
    workdir = Workdir(path)
    config = from_json(Config, {**workdir.config()["config"], **changes})
    return Session.start(SCRIPT.build(config), config), workdir


def final_state(path):
    """Reads the newest checkpoint as arrays of NumPy, the key as its words."""
    state = newest(*open_run(path), None)
    state = state.replace(key=jax.random.key_data(state.key))
    return jax.tree.map(np.asarray, state)


def saved_steps(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdecimal())


def assert_same_run(a, b):
    """Asserts that two runs ended in the same state, log and numbers, bit for bit."""
    x, y = final_state(a), final_state(b)
    assert int(x.step) == int(y.step)
    assert jax.tree.structure(x) == jax.tree.structure(y)
    jax.tree.map(np.testing.assert_array_equal, x, y)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert Workdir(a).report()["test"] == Workdir(b).report()["test"]


def snapshot(folder):
    """Hashes every file below a folder."""
    files = [Path(here) / name for here, _, names in os.walk(folder) for name in names]
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
