"""Several real processes: the same numbers as one, and no end without a name."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.run import hosts
from jaxdl.run.config import HostsConfig
from jaxdl.run.experiment import check_shares
from jaxdl.run.rollcall import Line, RollCall, _gather
from jaxdl.run.workdir import Workdir
from jaxdl.train.sharding import Placement
from tests.run.killed import draw_nothing
from tests.run.tiny_run import ROOT, STEPS, TINY, assert_same_run, final_state, main, saved_steps

# Wide enough for `fsdp` to split the first kernel.
COMMAND = (*TINY, "--save-minutes", "9", "--widths", "1024")


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def ends_of(commands, *, devices=1):
    """Runs commands side by side, so many devices to each; returns what became of each."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, text=True,
            env={**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for command in commands
    ]  # fmt: skip
    told = [process.communicate(timeout=200) for process in processes]
    return [
        SimpleNamespace(status=process.returncode, out=out, err=err)
        for process, (out, err) in zip(processes, told, strict=True)
    ]


def launch(folder, *moments, devices=1, count=None, limit=60, mesh="data=-1"):
    """Trains with a process for each moment, at which it is ended; see killed.py."""
    run = ("--workdir", folder, "--mesh", mesh, "--barrier-seconds", limit, "--coordinator")
    run = (*COMMAND, *run, f"localhost:{free_port()}", "--num-processes", count or len(moments))
    starts = [("-m", "tests.run.killed", moment) for moment in moments]
    return ends_of([(*s, *run, "--process-id", i) for i, s in enumerate(starts)], devices=devices)


def talk(code, count=2):
    """Runs a few lines as so many processes; they know their number as `me`."""
    head = f"""
        import os, sys, time
        from jaxdl.errors import UserError
        from jaxdl.run import hosts
        from jaxdl.run.config import HostsConfig
        me = int(sys.argv[1])
        with hosts.joined(HostsConfig(
            coordinator="localhost:{free_port()}", num_processes={count}, process_id=me,
        )):
            hosts._Settled.seconds = 1
    """
    code = textwrap.dedent(head) + textwrap.indent(textwrap.dedent(code), " " * 4)
    return ends_of([("-c", code, i) for i in range(count)])


def ended_well(ends):
    for end in ends:
        assert end.status == 0, end.err
    for end in ends[1:]:  # only process 0 speaks
        assert "step" not in end.out
        assert "error" not in end.err


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch.setattr)
        main(*COMMAND, "--mesh", "data=1", "--workdir", folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The run of two processes of two devices."""
    folder = tmp_path_factory.mktemp("two") / "run"
    ended_well(launch(folder, "never:0", "never:0", devices=2))
    return folder


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_numbers(a, b):
    """Asserts that two runs logged and ended in the same numbers, within 1e-5."""
    for x, y in zip(logged(a), logged(b), strict=True):
        assert (x.pop("step"), x.pop("kind")) == (y.pop("step"), y.pop("kind"))
        assert x.keys() == y.keys()
        np.testing.assert_allclose([*x.values()], [*y.values()], rtol=1e-5)
    # This process restores what two or four have saved.
    parameters = [jax.tree.leaves(final_state(folder).params) for folder in (a, b)]
    for p, q in zip(*parameters, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-5 * np.abs(q).max())
    x, y = Workdir(a).report(), Workdir(b).report()
    assert x["confusion_matrix"] == y["confusion_matrix"]
    assert np.sum(x["confusion_matrix"]) == 359  # every example once, over all processes


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(two, alone):
    assert_same_numbers(two, alone)


@pytest.mark.slow
def test_four_processes_that_split_the_model_too_have_the_numbers_of_one(tmp_path, alone):
    ended_well(launch(tmp_path, *["never:0"] * 4, mesh="data=2,fsdp=2"))
    assert_same_numbers(tmp_path, alone)


@pytest.mark.slow
def test_processes_stopped_and_killed_go_on_as_if_nothing_had_been(tmp_path, two):
    ends = launch(tmp_path, "never:0", "term:1", devices=2)
    assert [end.status for end in ends] == [143, 143], ends
    assert ends[0].out.count("interrupted and saved") == 1
    (stopped,) = saved_steps(tmp_path)  # once, by both
    assert 7 <= stopped < STEPS

    gone = launch(tmp_path, "never:0", "evaluation:3", devices=2)
    assert [end.status for end in gone] == [1, -signal.SIGKILL]
    assert "error: process 1 is gone" in gone[0].err
    gone = launch(tmp_path, "evaluation:3", "never:0", devices=2)
    assert [end.status for end in gone] == [-signal.SIGKILL, 1]
    assert "error: process 0" in gone[1].err

    ends = launch(tmp_path, "never:0", "never:0", devices=2)
    ended_well(ends)
    assert "resumed at step" in ends[0].out
    assert_same_run(tmp_path, two)


def test_a_process_that_does_not_come_to_the_start_is_named(tmp_path):
    [end] = launch(tmp_path, "never:0", count=3, limit=1)
    assert (end.status, end.out) == (1, "")
    assert end.err == "error: processes 1, 2 did not come to the start\n"
    assert not any(tmp_path.iterdir())


def test_a_process_that_hangs_is_named_and_all_end():
    first, second = talk("""
        if me == 0:
            hosts.barrier("tea")
        time.sleep(100)
    """)
    told = "process 1 did not come to 'tea' within 1 s"
    assert told in first.err
    assert f"error: process 0: {told}" in second.err
    assert (first.status, second.status) == (1, 1)


def test_a_mistake_of_one_process_ends_all_with_its_words_and_its_status():
    first, second = talk("""
        if me == 1:
            raise UserError("no such file")
        time.sleep(100)
    """)
    assert (first.status, first.err.strip()) == (2, "error: process 1: no such file")
    assert "no such file" in second.err


def test_a_signal_to_one_process_that_cannot_wait_for_the_others_ends_all():
    first, second = talk("""
        if me == 1:
            raise hosts.Left(143)
        time.sleep(100)
    """)
    assert (first.status, second.status) == (143, 143)
    assert first.err.strip() == "error: process 1: interrupted"


def test_what_process_0_says_all_say_and_spread_arrays_are_fetched_whole():
    ends = talk("""
        import jax, numpy as np
        from jaxdl.train.sharding import Placement
        rows = np.arange(3 * me, 3 * me + 3)
        x = Placement.over().split({"x": rows})
        print(hosts.by_first(me), hosts.gathered(x)["x"], hosts.is_first(), hosts.several())
    """)
    assert [end.out.splitlines()[-1] for end in ends] == [  # after a line of the collectives'
        "0 [0 1 2 3 4 5] True True",
        "0 [0 1 2 3 4 5] False True",
    ]


def test_two_processes_of_one_number_are_told():
    run = f'coordinator="localhost:{free_port()}", num_processes=3, process_id='
    code = "from jaxdl.run import hosts; from jaxdl.run.config import HostsConfig\n"
    code += "with hosts.joined(HostsConfig({}{}, barrier_seconds=60)): pass"
    for end in ends_of([("-c", code.format(run, i)) for i in (0, 1, 1)]):
        assert "look at --process-id" in end.err


def hello(port, process, *, of):
    """Says a number to process 0, once it listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            line = Line(socket.create_connection(("localhost", port)))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    line.send(process=process, of=of)
    return line


def test_a_process_that_is_restarted_while_the_others_are_awaited_has_its_place():
    port = free_port()
    with ThreadPoolExecutor() as pool:
        gathering = pool.submit(_gather, ("localhost", port), 3, time.monotonic() + 20)
        for _ in range(2):
            hello(port, 1, of=3).socket.close()
        other, again = hello(port, 2, of=3), hello(port, 1, of=3)
        lines = gathering.result()
    ends = [again, other, *lines.values()]
    assert [line.receive() for line in ends[:2]] == [{"start": True}] * 2
    assert not any(line.closed for line in ends)
    for line in ends:
        line.socket.close()


@pytest.mark.parametrize("address", ["localhost", ":8476", "localhost:0", "localhost:99999"])
def test_an_address_that_is_none_is_told(address):
    with pytest.raises(UserError, match=f"--coordinator {address} is not of the form HOST:PORT"):
        RollCall(address, process=0, count=2, seconds=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"coordinator": "here:1"}, "needs --num-processes and --process-id"),
        ({"coordinator": "here:1", "num_processes": 2, "process_id": 2}, "--process-id 2 is not"),
        ({"num_processes": 2}, "need --coordinator"),
        ({"coordinator": "auto"}, "JAX detects no cluster here"),
    ],
)
def test_options_that_name_no_place_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        hosts.launched(HostsConfig(**options))


STEP = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_NTASKS": "6",
    "SLURM_PROCID": "4", "SLURM_LOCALID": "1",
}  # fmt: skip


def test_a_step_of_several_tasks_is_a_run_of_several_processes(monkeypatch):
    for name, value in {**STEP, "SLURM_STEP_NUM_TASKS": "6"}.items():
        monkeypatch.setenv(name, value)
    assert hosts.launched(HostsConfig()) == ("node07:61441", 6, 4, [1])
    assert hosts.launched(HostsConfig(coordinator="none")) is None


def test_a_shell_within_an_allocation_is_one_process(monkeypatch):
    for name, value in {**STEP, "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert hosts.launched(HostsConfig()) is None


def test_a_mesh_that_gives_processes_other_rows_than_they_read_is_refused(monkeypatch):
    placement = Placement.over({"data": 4, "tensor": 2})
    check_shares(placement, 12)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # but all devices are this one's
    with pytest.raises(UserError, match="12 of 12 rows of a batch, and not the 6"):
        check_shares(placement, 12)
