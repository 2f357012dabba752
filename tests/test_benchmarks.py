"""The harness tells which side is faster, in lines that parse; the torch side is the same task."""

import importlib
import json
import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
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
    assert first["a"]["peak_process_bytes"] > 10 * 2**20


def tattling_toy(folder, seconds):
    """A side that writes down its process and when it ran."""

    def call():
        started = time.time()
        time.sleep(seconds)
        with (folder / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} {started} {time.time()}\n")

    return harness.Side(name="tattler", prepare=lambda: call, flops=5.0)


def test_a_side_apart_has_another_process_and_the_two_take_turns(tmp_path):
    here, there = tattling_toy(tmp_path, 0.02), harness.apart(tattling_toy, tmp_path, 0.05)
    assert (there.name, there.flops) == ("tattler", 5.0)
    a, b = harness.measure(here, there, rounds=2, warmup=1)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    ours, theirs = (calls[side::2] for side in (0, 1))
    assert {call[0] for call in ours} == {str(os.getpid())}
    assert len({call[0] for call in theirs} - {str(os.getpid())}) == 1
    assert len(calls) == 6
    ends, starts = ([float(call[n]) for call in calls] for n in (2, 1))
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert min(a.seconds) >= 0.02
    assert min(b.seconds) >= 0.05
    assert b.peaks.process > 10 * 2**20
    deadline = time.time() + 20  # it ends with what asked for it
    while Path(f"/proc/{theirs[0][0]}").exists() and time.time() < deadline:
        multiprocessing.active_children()
        time.sleep(0.05)
    assert time.time() < deadline


def failing_toy():
    def prepare():
        raise SystemExit(3)

    return harness.Side(name="failing", prepare=prepare)


def test_a_process_that_dies_is_not_waited_for():
    with pytest.raises(EOFError):
        harness.apart(failing_toy).prepare()


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


@pytest.mark.parametrize("style", ["gpt2", "modern"])
def test_the_transformer_of_pytorch_is_the_same_and_so_are_its_operations(style):
    """But PyTorch's count leaves attention out."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import transformer
    from benchmarks.language import init_params
    from benchmarks.torch_gpt import torch_gpt

    options = transformer.Options(
        width=48, layers=2, heads=3, time=16, batch_size=2, vocabulary=11, tokens=3
    )
    model = transformer.make_model(options, style)
    params, tokens = init_params(model), transformer.make_tokens(options)[:, :-1]
    network = torch_gpt(model, params)
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.tensor(tokens).long())
        logits.sum().backward()
    ours = model.apply({"params": params}, jnp.asarray(tokens), train=False)[0]
    np.testing.assert_allclose(logits.detach().numpy(), ours, atol=1e-5)
    uncounted = 3 * tokens.size * options.layers * 4 * options.width * options.time  # attention
    flops = transformer.train_step_flops(options, style)
    assert flops == counter.get_total_flops() + uncounted
    first = torch.tensor(tokens[:, :1]).long()
    assert network.generate(first, limit=options.tokens, temperature=0.8).shape == (2, 4)


def test_train_steps_of_both_sides_lower_the_same_loss():
    """From the same start, by the same optimiser, to the same parameters after some steps."""
    pytest.importorskip("torch")
    from benchmarks import transformer

    options = transformer.Options(width=48, layers=2, heads=3, time=16, batch_size=2, vocabulary=11)
    theirs = transformer.make_torch_step(options, "gpt2")
    task = transformer.make_task(options)
    step, state = task.compile()
    for _ in range(5):
        state, metrics = step(state, task.batch)
        np.testing.assert_allclose(metrics["loss"].compute(), theirs().item(), rtol=1e-4)


def test_in_bf16_both_sides_lower_the_same_loss_as_in_float32():
    pytest.importorskip("torch")
    from benchmarks import gpt2, transformer

    sizes = {"width": 48, "layers": 2, "heads": 3, "time": 16, "batch_size": 2, "vocabulary": 11}
    half, full = gpt2.Options(**sizes), gpt2.Options(**sizes, precision="float32")
    task = transformer.make_task(half)
    step, state = task.compile()
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    torch_step, exact_step = (transformer.make_torch_step(x, "gpt2") for x in (half, full))
    losses = []
    for _ in range(5):
        state, metrics = step(state, task.batch)
        losses.append((metrics["loss"].compute(), torch_step().item(), exact_step().item()))
    ours, theirs, exact = np.transpose(losses)
    assert (ours != exact).all()  # it is not float32 that is compared
    assert (theirs != exact).all()
    np.testing.assert_allclose(ours, exact, rtol=2e-3)
    np.testing.assert_allclose(theirs, exact, rtol=2e-3)


def test_the_share_of_the_data_sheets_peak_is_stated_where_it_is_known(monkeypatch):
    from benchmarks import gpt2

    options = gpt2.Options()
    assert gpt2.rates(options, 2.0) == {"tokens_per_second": 10 * 12 * 1024 / 2, "mfu": None}
    on = lambda kind: monkeypatch.setattr(  # noqa: E731
        jax, "devices", lambda: [SimpleNamespace(device_kind=kind)]
    )
    known = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA H200": 989, "NVIDIA H200 NVL": None}
    for kind, peak in known.items():
        on(kind)
        assert gpt2.datasheet_peak(options) == peak
    on("NVIDIA H100 80GB HBM3")
    products = 12 * 12 * 768**2 + 50_304 * 768  # parameters, of 124 million in all
    flops = 6 * products + 12 * 12 * 768 * 1024
    assert gpt2.rates(options, 1.0)["mfu"] == pytest.approx(10 * 12 * 1024 * flops / 989e12)
    own = gpt2.Options(peak_tflops=100)
    assert gpt2.rates(own, 1.0)["mfu"] == pytest.approx(10 * 12 * 1024 * flops / 100e12)
    assert gpt2.rates(gpt2.Options(precision="float32"), 1.0)["mfu"] is None


def test_gpt2_prints_a_line_that_tells_tokens_a_second(capsys, monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import gpt2

    monkeypatch.setattr(gpt2, "keep_memory", lambda: False)
    monkeypatch.setattr(gpt2, "matmul_peak", lambda dtype: {"jax": 10.0})
    gpt2.main(gpt2.Options(width=48, layers=2, heads=3, time=16, batch_size=2, vocabulary=11,
                           steps=2, rounds=2, warmup=1))  # fmt: skip
    line = json.loads(capsys.readouterr().out)
    assert (line["precision"], line["rounds"], line["b"]["name"]) == ("bf16", 2, "torch, eager")
    for side in line["a"], line["b"]:
        assert side["tokens_per_second"] == pytest.approx(2 * 2 * 16 / side["seconds"])
        assert side["mfu"] is None


def test_a_gpu_that_pytorch_does_not_have_is_told(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="install a CUDA build of torch, or compare on the CPU"):
        harness.import_torch()


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


@pytest.mark.slow
def test_a_train_step_of_diffusion_is_the_same_rematerialised_and_samples_come_out():
    from benchmarks import diffusion

    options = diffusion.Options(batch_size=2, image_size=8, width=8)
    losses = []
    for remat in (False, True):
        task = diffusion.make_task(options, remat=remat)
        step, state = task.compile()
        for _ in range(3):
            state, metrics = step(state, task.batch)
        losses.append(float(metrics["loss"].compute()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0
    keys = jax.random.split(jax.random.key(0), 2)
    images = diffusion.compile_sampler(options, 3)(diffusion.init_params(options), keys)
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()


def test_without_the_peer_in_diffusion_it_says_what_to_install(monkeypatch):
    pytest.importorskip("torch")
    from benchmarks import diffusion

    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", None)
    with pytest.raises(UserError, match="pip install 'denoising-diffusion-pytorch=="):
        diffusion.peer()


BENCHMARKS = pytest.mark.parametrize(
    "name", ["reference_cnn", "recurrent", "transformer", "gpt2", "diffusion"]
)


@BENCHMARKS
def test_without_pytorch_it_says_what_to_install(name, monkeypatch):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(benchmark, "keep_memory", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'jaxdl\[reference\]'"):
        benchmark.main(benchmark.Options())


@BENCHMARKS
def test_the_options_have_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert "--rounds" in capsys.readouterr().out
