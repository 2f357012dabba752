"""The harness tells which side is faster, in lines that parse; the torch side is the same task."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import harness
from jaxdl.errors import UserError


def toy(name, seconds, called):
    def call():
        called.append(name)
        time.sleep(seconds)

    def prepare():
        called.append(f"prepare {name}")
        return call

    return harness.Side(name=name, prepare=prepare, flops=3e6)


def test_the_ratio_is_above_one_where_a_is_faster(capsys):
    called = []
    slow, fast = toy("slow", 0.02, called), toy("fast", 0.002, called)
    peak = {"jax": 1.5, "torch": 3.0}
    harness.emit(harness.compare("toys", fast, slow, rounds=3, warmup=1, peak=peak, steps=7))
    assert called == ["prepare fast", "prepare slow", *["fast", "slow"] * 4]
    harness.emit(harness.compare("toys", slow, fast, rounds=3, warmup=1))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["ratio"]["min"] <= first["ratio"]["median"] <= first["ratio"]["max"]
    assert first["ratio"]["median"] > 1.5
    assert second["ratio"]["median"] < 1 / 1.5
    assert (first["a"]["name"], first["b"]["name"], first["steps"]) == ("fast", "slow", 7)
    assert first["b"]["seconds"] >= 0.02
    assert first["b"]["gflops"] == pytest.approx(3e6 / first["b"]["seconds"] / 1e9)
    assert first["b"]["share_of_peak"] == pytest.approx(first["b"]["gflops"] / 3)
    assert "share_of_peak" not in second["a"]
    assert first["versions"]["jax"]
    assert first["device"]
    assert first["peak_process_bytes"] > 10 * 2**20


def test_the_warm_up_is_not_counted():
    a, b = harness.measure(toy("a", 0, []), toy("b", 0, []), rounds=3, warmup=2)
    assert len(a.seconds) == len(b.seconds) == 3


def test_the_ratio_is_the_median_of_the_pairs():
    """Not the ratio of the medians: a machine that slows down moves both sides of a pair."""
    ratio = harness.pairwise_ratio([1.0, 10.0, 100.0], [3.0, 20.0, 500.0])
    assert ratio == {"median": 3.0, "min": 2.0, "max": 5.0}
    assert harness.pairwise_ratio([1.0, 9.0, 2.0], [2.0, 1.0, 6.0])["median"] == 2.0


def test_the_peak_of_the_machine_is_a_rate(monkeypatch):
    seconds = iter([0.2, 0.1, 0.3] * 2)
    monkeypatch.setattr(harness, "least_seconds", lambda call, repeats: next(seconds))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert harness.matmul_peak() == {"jax": pytest.approx(2 * 2048**3 / 0.3 / 1e9)}


def test_operations_are_those_that_pytorch_counts():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.reference_cnn import train_step_flops
    from benchmarks.torch_reference import TorchCNN

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = TorchCNN(10)
        network(torch.zeros(2, 3, 48, 48)).sum().backward()
    assert counter.get_total_flops() == train_step_flops(2)
    assert train_step_flops(64) == pytest.approx(37e9, rel=0.01)


def test_the_augmentation_of_pytorch_is_the_recipe():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_reference

    torch.manual_seed(0)
    grey = torch.full((200, 1, 28, 28), 128, dtype=torch.uint8)
    x = torch_reference.augment(grey)
    assert x.shape == (200, 3, 48, 48)
    centre = (x[:, :, 24, 24] * 0.3081 + 0.1307).numpy() / (128 / 255)
    # Contrast leaves a grey image nearly alone, but for the corners that rotation has blackened.
    assert centre.min() == pytest.approx(0.8, abs=0.05)
    assert centre.max() == pytest.approx(1.2, abs=0.05)
    np.testing.assert_array_equal(centre[:, 0], centre[:, 2])
    bar = torch.zeros(50, 1, 48, 48)
    bar[:, :, 23:25] = 1
    turned = torch_reference.rotate(bar, 10)[:, 0, :, 44].argmax(1).numpy()
    reach = 20 * np.tan(np.radians(10))
    assert turned.min() == pytest.approx(23 - reach, abs=1)
    assert turned.max() == pytest.approx(23 + reach, abs=1)


def test_without_pytorch_it_says_what_to_install(monkeypatch):
    from benchmarks import reference_cnn

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'jaxdl\[reference\]'"):
        reference_cnn.main(reference_cnn.Options())


def test_the_options_have_help():
    command = [sys.executable, "-m", "benchmarks.reference_cnn"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "--steps" in done.stdout
    assert "Traceback" not in done.stderr
