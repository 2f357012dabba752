"""A run that is killed while it saves loses at most that save."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.train import TrainState
from jaxdl.train.checkpoint import Checkpoints

# All parameters equal the step, so a mixture of two saves would show.
PROGRAM = """
    import sys, jax, jax.numpy as jnp, numpy as np, optax
    from jaxdl.train import TrainState
    from jaxdl.train.checkpoint import Checkpoints
    from test_checkpoint_kill import filled

    checkpoints = Checkpoints(sys.argv[1])
    found = checkpoints.restore(filled(0))
    step = int(found[0].step) if found else 0
    print("ready", flush=True)
    while True:
        step += 1
        checkpoints.save(step, filled(step), {"at": step})
        print(step, flush=True)
"""


def filled(step):
    params = {name: jnp.full((256, 50 + i), step, jnp.float32) for i, name in enumerate("abcd")}
    state = TrainState.create(lambda key: (params, {}), optax.sgd(0.1), jax.random.key(0))
    return state.replace(step=jnp.int32(step))


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_save_that_is_killed_leaves_the_ones_before_whole(tmp_path):
    wait = random.Random(0)
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    newest = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            for _ in range(3):
                line = process.stdout.readline()
            time.sleep(wait.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            said = [line, *process.stdout.read().splitlines(keepends=True)]
        last = max(int(word) for word in said if word.endswith("\n"))
        checkpoints = Checkpoints(tmp_path)
        told = []
        state, progress = checkpoints.restore(filled(0), tell=told.append)
        step = int(state.step)
        assert told == []
        assert step in (last, last + 1)  # the second, where it was killed before it could say so
        assert step > newest
        assert progress == {"at": step}
        for leaf in jax.tree.leaves(state.params):
            np.testing.assert_array_equal(leaf, step)
        newest = step + 1
        checkpoints.save(newest, filled(newest), {"at": newest})
        checkpoints.close()
        assert [child.name for child in tmp_path.iterdir() if not child.name.isdecimal()] == []
