"""Language modelling: what is counted, what is written, what a text is worth."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language_modeling import SCRIPT, Config
from jaxdl.data.tokenizers import ByteTokenizer, CharTokenizer
from jaxdl.decode import row_keys
from jaxdl.errors import UserError
from jaxdl.metrics import merge
from jaxdl.run.language import characters_of, language_metrics
from jaxdl.run.writing import GenerateConfig, load_writer, surprises

TEXT = "".join(f"{n} times {n} is {n * n}; naïve, isn't it?\n" for n in range(150))
TINY = (
    "--corpus", "file", "--width", "16", "--length", "24", "--context", "8", "--batch-size", "8",
    "--eval-batch-size", "8", "--epochs", "2", "--tokenizer", "char", "--sample", "30",
)  # fmt: skip


def main(*arguments):
    SCRIPT.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text(TEXT)
    main(*TINY, "--file", folder / "text.txt", "--workdir", folder / "run", "--eval-every", 20)
    return folder / "run"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer.train(TEXT)])
def test_the_characters_of_tokens_are_those_of_their_text(tokenizer):
    characters = characters_of(tokenizer)
    for text in ("plain", "naïve", "ï"):
        assert characters[tokenizer.encode(text)].sum() == len(text)
    assert characters[0] == 0  # padding


def test_bits_a_character_are_of_all_that_is_counted_whatever_the_split():
    rng = np.random.default_rng(0)
    losses = jnp.asarray(rng.uniform(0, 5, (6, 7)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 5, (6, 7)))
    mask = jnp.asarray(rng.random((6, 7)) < 0.6)
    characters = np.array([0, 1, 2, 1, 4], np.float32)
    batch = {"targets": targets, "mask": mask}
    whole = language_metrics(losses, batch, characters)
    halves = [language_metrics(losses[h], jax.tree.map(lambda x: x[h], batch), characters)  # noqa: B023
              for h in (slice(0, 2), slice(2, 6))]  # fmt: skip
    expected = losses[mask].sum() / math.log(2) / characters[targets[mask]].sum()
    for metrics in (whole, merge(*halves)):
        assert metrics["bits_per_char"].compute() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"length": 0}, "--length must be above 0"),
        ({"length": 8, "context": 8}, "--context must lie in"),
        ({"tokenizer": "bpe", "vocabulary": 100}, "--vocabulary must be above 256"),
        ({"file": Path("a.txt")}, "--file needs --corpus file, or questions, beside it, got a.txt"),
        ({"validation_file": Path("a.txt")}, "--validation-file needs --corpus file beside it"),
        ({"layers": 0}, "--layers must be above 0"),
        ({"dropout": 1.0}, "--dropout must lie in"),
        ({"kv_heads": 0}, "--kv-heads must be above 0 and divide --heads, 4, got 0"),
        ({"kv_heads": -1}, "--kv-heads must be above 0 and divide --heads, 4, got -1"),
        ({"kv_heads": 3}, "--kv-heads must be above 0 and divide --heads, 4, got 3"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        dataclasses.replace(Config(), **changes)


def test_a_run_leaves_samples_baselines_and_a_tokenizer(run):
    report = json.loads((run / "report.json").read_text())
    assert set(report["test"]) == {"loss", "bits_per_char"}
    assert set(report["baselines"]) == {"gzip", "order_4"}
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
             if json.loads(line)["kind"] == "evaluation"]  # fmt: skip
    assert sorted(int(path.stem) for path in (run / "samples").iterdir()) == sorted(set(steps))
    assert len((run / "samples" / f"{steps[-1]}.txt").read_text()) == len("def ") + 30
    assert (run / "model" / "tokenizer.json").exists()


def test_generate_continues_a_prompt_the_same_way_every_time(run, capsys):
    outputs = []
    for _ in range(2):
        capsys.readouterr()
        main("generate", "--workdir", run, "--prompt", "7 times ", "--tokens", 20, "--next", 3)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    *likely, written = outputs[0].split("\n", 3)
    probabilities = [float(line.split()[0]) for line in likely]
    assert probabilities == sorted(probabilities, reverse=True)
    assert written.startswith("7 times ")
    assert len(written) == len("7 times ") + 20 + 1  # and the last line's end


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_what_no_text_is_written_with_is_never_drawn(temperature):
    options = GenerateConfig(workdir="run", temperature=temperature)
    logits = jnp.array([[9.0, 0.0, 3.0, 8.0, 3.0]] * 20)
    tokens = options.sampler((0, 3))(row_keys(jax.random.key(0), 20), logits)
    assert {2} <= {*tokens.tolist()} <= {2, 4, 1}
    assert temperature or {*tokens.tolist()} == {2}  # the first of two that are as probable


def test_a_text_is_worth_the_sum_of_its_tokens_and_stretches_change_nothing(run, capsys):
    writer = load_writer(run)
    text = TEXT[100:180]
    tokens = writer.tokenizer.encode(text)
    params = jax.tree.map(jnp.asarray, writer.params)
    logits, _ = writer.model.apply({"params": params}, jnp.asarray(tokens[None, :-1]), train=False)
    logprobs = jax.nn.log_softmax(logits[0])[np.arange(len(tokens) - 1), tokens[1:]]
    for size in (7, 512):
        got = np.concatenate(list(surprises(writer, tokens, size=size)))
        np.testing.assert_allclose(got, -logprobs, rtol=1e-4, atol=1e-5)
    main("score", "--workdir", run, text, "--worst", 2)
    out = capsys.readouterr().out.splitlines()
    assert f"log-probability {logprobs.sum():.2f}"[:-1] in out[-4]
    bits = -float(logprobs.sum()) / math.log(2) / (len(text) - 1)
    assert float(out[-3].split()[0]) == pytest.approx(bits, abs=1e-3)
    worst = sorted(np.exp(logprobs))[:2]
    assert [float(line.split()[0]) for line in out[-2:]] == pytest.approx(worst, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("score",), "takes a text, or --file"),
        (("score", "1"), "two tokens at least"),
        (("score", "--file", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("generate", "--stop", "it"), "must be one"),
        (("generate", "--top-p", "1.5"), "--top-p must lie in"),
        (("generate", "--temperature", "inf"), "--temperature must be 0 or more, and finite"),
        (("score", "1 times", "--worst", "-1"), "--worst must not be negative"),
        (("generate", "--tokens", "0"), "--tokens must be at least 1"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, told, run, capsys):
    verb, *rest = arguments
    with pytest.raises(SystemExit) as leaving:
        main(verb, "--workdir", run, *rest)
    assert leaving.value.code == 2
    assert told in capsys.readouterr().err


def test_a_corpus_of_a_file_needs_the_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        main("--corpus", "file", "--workdir", tmp_path / "run")
    assert leaving.value.code == 2
    assert "--file PATH" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_streams_are_evaluated_as_the_text_is_scored_in_one_go(tmp_path, capsys):
    """One stream carries its state through the whole of the held-out text, as `score` does."""
    (tmp_path / "text.txt").write_text(TEXT)
    command = (*TINY, "--file", tmp_path / "text.txt", "--workdir", tmp_path / "run", "--feed",
               "streams", "--context", 0, "--eval-batch-size", 1, "--mesh", "data=1")  # fmt: skip
    with pytest.raises(SystemExit) as refused:
        main(*command, "--parallel", "pmap")
    assert refused.value.code == 2
    assert "--parallel pmap has no streams: use jit or shard_map" in capsys.readouterr().err
    main(*command)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    writer = load_writer(tmp_path / "run")
    nats = np.concatenate(list(surprises(writer, writer.encode(TEXT[int(0.9 * len(TEXT)) :]))))
    assert report["test"]["loss"] == pytest.approx(nats.mean(), rel=1e-5)
