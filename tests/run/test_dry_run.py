"""What a step would take, told without taking it."""

import re

import pytest

from experiments.image_classification import SCRIPT, Config
from jaxdl.run.dry_run import compile_step, held_bytes, size
from jaxdl.run.experiment import Session
from tests.run.tiny_run import QUICK, main

PARAMETERS = 64 * 16 + 16 + 16 * 10 + 10
# The step of Adam and the shapes of a batch are a few bytes beside what the tables count.
SLACK = 200


def session(mesh, width=16):
    config = Config(model="mlp", widths=(width,), image_size=8, channels=1, dropout=0, mesh=mesh)
    return Session.start(SCRIPT.build(config), config)


def test_what_a_device_holds_is_what_xla_says_that_it_is_given():
    here = session("data=4")
    held = held_bytes(here, here.abstract_state())
    assert held["parameters"] == 4 * PARAMETERS
    assert held["optimiser"] == pytest.approx(2 * 4 * PARAMETERS, abs=SLACK)
    given = compile_step(here).call.memory_analysis().argument_size_in_bytes
    assert given == pytest.approx(sum(held.values()), abs=SLACK)


def test_fsdp_leaves_a_device_its_share_of_what_is_large():
    split, whole = session("fsdp=4", width=2048), session("data=4", width=2048)
    split, whole = (held_bytes(x, x.abstract_state()) for x in (split, whole))
    kernel = 4 * 64 * 2048  # bytes of the first one; the second is small
    assert whole["parameters"] - split["parameters"] == kernel * 3 / 4
    assert whole["optimiser"] - split["optimiser"] == 2 * kernel * 3 / 4


def test_a_mesh_larger_than_the_machine_is_compiled_and_no_folder_is_made(tmp_path, capfd):
    # 8 devices are here; a child process has 24.
    main(*QUICK, "--dry-run", "--mesh", "data=24", "--batch-size", "48",
         "--eval-batch-size", "48", "--workdir", tmp_path / "run")  # fmt: skip
    out = capfd.readouterr().out
    assert "data=24 on 24 x cpu" in out
    assert re.search(rf"parameters +{PARAMETERS:,}\n", out)
    # One all-reduce of the gradient, and of a loss, a count and the like.
    told = re.search(r"communicates +([\d.]+) KiB +\d+ x all-reduce", out)
    assert told is not None
    assert 4 * PARAMETERS <= 1024 * float(told[1]) + 5 <= 4 * PARAMETERS + SLACK
    assert "all-gather" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_is_told_by_the_child_as_by_any_run(tmp_path, capfd):
    with pytest.raises(SystemExit) as leaving:
        main(*QUICK, "--dry-run", "--mesh", "data=24", "--workdir", tmp_path / "run")
    assert leaving.value.code == 2
    assert "--batch-size 64 does not split over 24" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(3, "3 B"), (2048, "2.00 KiB"), (5 * 2**29, "2.50 GiB"), (2**50, "1,048,576.00 GiB")],
)
def test_sizes_are_read_at_a_glance(count, text):
    assert size(count) == text
