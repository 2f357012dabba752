"""A run is the same run on any mesh, and goes on on another one."""

import signal

import jax
import numpy as np
import pytest

from jaxdl.run.log import Log
from jaxdl.run.workdir import Workdir
from tests.run.killed import draw_nothing
from tests.run.tiny_run import QUICK, final_state, main, refused


@pytest.fixture(scope="module", autouse=True)
def without_figures():
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch.setattr)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    main(*QUICK, "--mesh", "data=1", "--workdir", folder)
    return folder


def assert_equal_runs(a, b):
    x, y = final_state(a), final_state(b)
    assert int(x.step) == int(y.step) == 7
    for one, other in zip(jax.tree.leaves(x.params), jax.tree.leaves(y.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    assert Workdir(a).report()["test"] == pytest.approx(Workdir(b).report()["test"], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_on_one_mesh_goes_on_on_another(alone, tmp_path, monkeypatch):
    """With dropout and augmentation, whose draws do not know of the devices."""
    interval = Log.interval

    def logged(log, at, stepping):
        interval(log, at, stepping)
        if at == 3:
            signal.raise_signal(signal.SIGTERM)

    command = (*QUICK, "--workdir", tmp_path / "run", "--mesh")
    with monkeypatch.context() as patch:
        patch.setattr(Log, "interval", logged)
        with pytest.raises(SystemExit, match="143"):
            main(*command, "data=2,fsdp=4")
    assert not (tmp_path / "run" / "report.json").exists()
    main(*command, "data=4")
    assert_equal_runs(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_run_may_be_one_program_a_device(tmp_path):
    """Each device then draws its own, so what draws is off."""
    still = ("--dropout", "0", "--rotation", "0", "--translate", "0", "--mesh", "data=2")
    for way in ("jit", "pmap", "shard_map"):
        main(*QUICK, *still, "--parallel", way, "--workdir", tmp_path / way)
    assert_equal_runs(tmp_path / "pmap", tmp_path / "jit")
    assert_equal_runs(tmp_path / "shard_map", tmp_path / "jit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mesh", "data=2,fsdp=2", "--parallel", "pmap"), "--parallel pmap splits the batch al"),
        (("--mesh", "fsdp=3"), "--batch-size 64 does not split over 3 device"),
        (("--mesh", "data=2,rows=2"), "'rows=2' is not of the form AXIS=N"),
    ],
)
def test_a_mesh_that_does_not_do_is_told_in_one_line(capsys, tmp_path, options, message):
    assert message in refused(capsys, *QUICK, *options, "--workdir", tmp_path / "run")
