"""The end of a run: its model, its figures and its report."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from typing import Any

import jax

from jaxdl.interop.safetensors import save_model
from jaxdl.run import hosts
from jaxdl.run.experiment import Session
from jaxdl.run.meters import Meters
from jaxdl.run.progress import clock, phase, say
from jaxdl.run.report import draw_learning_curves
from jaxdl.run.workdir import Workdir
from jaxdl.train.state import TrainState


def finish(
    session: Session,
    workdir: Workdir,
    state: TrainState,
    meters: Meters,
    test: Mapping[str, float],
) -> dict[str, Any]:
    """Exports the model, draws the figures, and writes the report last: it marks completion."""
    experiment = session.experiment
    steps = int(state.step)
    report: dict[str, Any] = {
        "experiment": workdir.config()["experiment"],
        "dataset": experiment.dataset,
        "device": device_name(),
        "steps": steps,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "train_seconds": round(meters.seconds, 1),
        f"{experiment.unit}_per_second": round(
            steps * session.units_per_step / max(meters.stepping, 1e-9), 1
        ),
        "test": dict(test),
    }
    with phase("report") as note:
        weights, model_state = hosts.gathered((state.weights, state.model_state))
        if hosts.is_first():
            about = {"about": experiment.about, "model_state": model_state}
            save_model(workdir.model, experiment.model, weights, **about)
            draw_learning_curves(workdir.history(), workdir.figures / "learning_curves.png")
        further = experiment.finish(state, workdir, session.placement)
        report["test"] |= further.pop("test", {})
        report |= further
        workdir.write_report(report)
        note.text = str(workdir.path)
    say(f"{'done':<10}{summary(report['test'])} ({clock(meters.seconds)} of training)")
    return report


def summary(test: Mapping[str, float | None]) -> str:
    """Puts final numbers into one line; one that was not finite a report has as None."""
    numbers = {name: math.nan if value is None else value for name, value in test.items()}
    return ", ".join(f"test {name} {value:.4f}" for name, value in numbers.items())


def device_name() -> str:
    """Names the devices: their kind, and how many where there are several."""
    device, count = jax.devices()[0], jax.device_count()
    kind = device.device_kind if device.platform != "cpu" else f"cpu ({platform.machine()})"
    return kind if count == 1 else f"{count} x {kind}"
