"""Runs the experiment's command line and kills it with SIGKILL at a moment that is named first.

never:0       not at all, but without figures all the same

rename:N      when a checkpoint is about to be made visible for the N-th time
save:N        some milliseconds into the N-th save
evaluation:N  at the N-th batch of evaluation
after:S       S seconds after the first logged line
line:N        at the N-th logged line
term:N        the same, but by SIGTERM
"""

import os
import signal
import sys
import threading


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(count, then, function):
    """Wraps a function, to call `then` before its `count`-th call."""
    calls = iter(range(1, 1_000_000))

    def wrapped(*args, **kwargs):
        if next(calls) == count:
            then()
        return function(*args, **kwargs)

    return wrapped


def draw_nothing(patch):
    """Leaves figures out, by `patch(module, name, function)`: they take longer than the rest."""
    from jaxdl.run import classification, finish, images

    drawn = {
        images: ["draw_images"],
        classification: ["draw_confusion_matrix", "draw_mistakes"],
        finish: ["draw_learning_curves"],
    }
    for module, names in drawn.items():
        for name in names:
            patch(module, name, lambda *_, **__: None)


def arrange(moment, amount):
    import orbax.checkpoint as ocp

    import jaxdl.train.loop
    from jaxdl.run.log import Log

    if moment == "rename":
        seen = []

        def audit(event, args):
            if event == "os.rename" and os.fspath(args[1]).rpartition("/")[2].isdecimal():
                seen.append(args)
                if len(seen) == int(amount):
                    kill()

        sys.addaudithook(audit)
    elif moment == "save":
        soon = threading.Timer(0.02, kill)
        manager = ocp.CheckpointManager
        manager.save = at_call(int(amount), soon.start, manager.save)
    elif moment == "evaluation":
        jaxdl.train.loop.to_host = at_call(int(amount), kill, jaxdl.train.loop.to_host)
    elif moment in ("line", "term"):
        number = signal.SIGTERM if moment == "term" else signal.SIGKILL
        Log.interval = at_call(int(amount), lambda: os.kill(os.getpid(), number), Log.interval)
    elif moment == "after":
        Log.interval = at_call(1, threading.Timer(float(amount), kill).start, Log.interval)
    elif moment != "never":
        raise ValueError(moment)


if __name__ == "__main__":
    from experiments.image_classification import SCRIPT

    draw_nothing(setattr)
    arrange(*sys.argv[1].split(":"))
    SCRIPT.main(sys.argv[2:])
