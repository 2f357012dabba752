"""GPT-2 in a folder of Hugging Face's: read, written, and used by a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.language_modeling import SCRIPT
from jaxdl.data import BPETokenizer, CharTokenizer
from jaxdl.data.gpt2_tokenizer import GPT2Tokenizer
from jaxdl.decode import generate, pad_prompts, row_keys, stream
from jaxdl.errors import UserError
from jaxdl.interop.gpt2 import load_gpt2, main, save_gpt2
from jaxdl.interop.safetensors import load_model, save_model
from jaxdl.interop.stacks import looped, scanned
from jaxdl.models import TransformerLM
from jaxdl.sampling import greedy

TEXT = "the cat sat on the mat; the mat sat on the cat" * 3
BPE = BPETokenizer.train(TEXT, size=270, specials=("<|endoftext|>",))
TOKENIZER = GPT2Tokenizer.of(BPE)
V, LIMIT = TOKENIZER.size + 2, 24  # two tokens more than the vocabulary has
SIZES = {"width": 12, "layers": 2, "heads": 3, "limit": LIMIT}
MODEL = TransformerLM(V, **SIZES, dropout=0.1)
WIDER = GPT2Tokenizer(TOKENIZER.to_json()["vocab"], TOKENIZER.to_json()["merges"], size=V)
PROMPTS = ["the cat", "mat sat on the mat;", "!"]


def drawn(model=MODEL):
    init = lambda: model.init(jax.random.key(0), jnp.ones((1, 1), jnp.int32), train=False)  # noqa: E731
    rng = np.random.default_rng(0)
    draw = lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(init)["params"])


PARAMS = drawn()


def close(a, b, tolerance=1e-5):
    """Demands max |a - b| <= tolerance * max |b|."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def theirs(tmp_path):
    """A folder as Hugging Face's own library writes it, with random weights, and their model."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = hf.GPT2Config(
        vocab_size=V, n_positions=LIMIT, n_embd=12, n_layer=2, n_head=3, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    network = hf.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():  # with larger embeddings a token would repeat
            p.add_((0.1 if "wte" in name else 0.5) * torch.randn(p.shape))
    network.save_pretrained(tmp_path / "theirs")
    TOKENIZER.write(tmp_path / "theirs")
    return torch, network, tmp_path / "theirs"


def test_logits_and_what_is_written_greedily_are_those_of_hugging_face(theirs):
    torch, network, folder = theirs
    model, params, tokenizer = load_gpt2(folder)
    assert model == MODEL
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    tokens, lengths = pad_prompts(prompts, multiple=4)
    step, read = (jax.tree_util.Partial(f, params) for f in (model.step, model.read))
    keys, carry = row_keys(jax.random.key(0), len(prompts)), model.initial_carry(len(prompts))
    written = generate(step, carry, tokens, lengths, keys, read=read, sampler=greedy, limit=12)
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens, train=False)[0])
    for prompt, logits, ours in zip(prompts, forward(tokens), written.tokens, strict=True):
        index = torch.tensor(prompt[None]).long()
        close(logits[: len(prompt)], network(index).logits[0].detach())
        expected = network.generate(
            index, attention_mask=torch.ones_like(index), do_sample=False, max_new_tokens=12,
            pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        assert np.asarray(ours).tolist() == expected.tolist()
        assert len(set(expected.tolist())) > 3


def test_a_folder_comes_back_bit_for_bit_and_their_library_reads_it(theirs, tmp_path):
    torch, network, folder = theirs
    save_gpt2(tmp_path / "ours", *load_gpt2(folder))
    for name in ("model.safetensors", "vocab.json", "merges.txt"):
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    import transformers

    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    index = torch.arange(LIMIT)[None]
    assert torch.equal(again(index).logits, network(index).logits)
    there, here = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "ours"))
    own = {"architectures", "bos_token_id", "eos_token_id"}  # theirs was made without these two
    assert {name: here[name] for name in here.keys() - own} == {
        name: there[name] for name in here.keys() - own
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer(TEXT)["input_ids"] == TOKENIZER.encode(TEXT).tolist()


def test_weights_in_pieces_and_in_half_come_as_one(theirs, tmp_path):
    torch, network, folder = theirs
    network.save_pretrained(tmp_path / "pieces", max_shard_size="8KB")
    TOKENIZER.write(tmp_path / "pieces")
    assert not (tmp_path / "pieces" / "model.safetensors").exists()
    same(load_gpt2(tmp_path / "pieces").params, load_gpt2(folder).params)
    network.to(torch.bfloat16).save_pretrained(folder)
    params = load_gpt2(folder).params
    jax.tree.map(lambda a: np.testing.assert_array_equal(a, a.astype(jnp.bfloat16)), params)


@pytest.fixture
def folder(tmp_path):
    save_gpt2(tmp_path / "gpt2", MODEL, PARAMS, WIDER)
    return tmp_path / "gpt2"


def test_what_was_written_is_read_again_from_a_loop_and_from_a_scan(folder, tmp_path):
    model, params, tokenizer = load_gpt2(folder)
    assert model == MODEL
    same(params, PARAMS)
    assert tokenizer.to_json() == WIDER.to_json()
    stacked = PARAMS | {"decoder": scanned(PARAMS["decoder"])}
    same(looped(stacked["decoder"]), PARAMS["decoder"])
    save_gpt2(tmp_path / "scan", model.clone(scan=True), stacked, tokenizer)
    for path in folder.iterdir():
        assert (tmp_path / "scan" / path.name).read_bytes() == path.read_bytes()


def test_a_config_that_says_little_means_the_smallest_gpt2(folder):
    config = json.loads((folder / "config.json").read_text())
    few = {"model_type": "gpt2", "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": LIMIT}
    (folder / "config.json").write_text(json.dumps(few | {"vocab_size": V}))
    assert load_gpt2(folder).model == MODEL
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"embed.embedding is \(\d+, 12\) there, and \(50257, 12\)"):
        load_gpt2(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type is 'gpt_neo', not 'gpt2'"),
        ({"activation_function": "gelu"}, "is 'gelu', and 'gelu_new' or 'gelu_pytorch_tanh' is"),
        ({"n_inner": 20}, "n_inner is 20, and 4 n_embd is computed here"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False, and True is computed"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True, and False is"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, and 1e-05 is computed here"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, and True is"),
        ({"attn_pdrop": 0.3}, "embd_pdrop, attn_pdrop, resid_pdrop differ"),
        ({"n_layer": 3}, r"decoder.blocks_2.* is absent there"),
        ({"n_head": 5}, "a width of 12 does not split over 5 heads"),
        ({"n_head": 0}, "n_head is 0, not a number above 0"),
        ({"n_positions": "8"}, "n_positions is '8', not a number above 0"),
        ({"vocab_size": 9}, r"embed.embedding is \(272, 12\) there, and \(9, 12\)"),
    ],
)
def test_what_is_not_computed_here_is_told_in_a_line(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as error:
        load_gpt2(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged_are_told_in_a_line(folder):
    weights = folder / "model.safetensors"
    arrays = load_file(weights)
    one = arrays.pop("transformer.wpe.weight")
    save_file(arrays, weights)
    for do, message in [
        (lambda: None, r"gpt2: the state dict: transformer.wpe.weight is missing"),
        (lambda: save_file(arrays | {"transformer.wpe.weight": one[1:]}, weights),
         r"positions.embedding is \(23, 12\) there"),
        (lambda: weights.write_text("none"), "model.safetensors cannot be read"),
        (weights.unlink, "has no model.safetensors, .* no pytorch_model.bin"),
        (lambda: (folder / f"{weights.name}.index.json").write_text("{}"), "has no weight_map"),
        (lambda: (folder / "config.json").write_text("[]"), "config.json holds no fields"),
        (lambda: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        ((folder / "config.json").unlink, "config.json is missing"),
    ]:  # fmt: skip
        do()
        with pytest.raises(UserError, match=message) as error:
            load_gpt2(folder)
        assert "\n" not in str(error.value)
        assert str(error.value).count(str(folder)) == 1


def test_what_is_no_gpt2_is_not_written(tmp_path):
    modern = TransformerLM(V, style="modern", **SIZES)
    for model, params, tokenizer, message in [
        (modern, drawn(modern), WIDER, "is of style 'gpt2'"),
        (MODEL.clone(kv_heads=1), PARAMS, WIDER, "as many heads of keys as of queries"),
        (MODEL, PARAMS, TOKENIZER, f"the model has {V} tokens, its tokeniser {V - 2}"),
        (MODEL.clone(layers=1), PARAMS, WIDER, "the parameters: decoder.blocks_1"),
    ]:
        with pytest.raises(UserError, match=message):
            save_gpt2(tmp_path / "new", model, params, tokenizer)
    assert not (tmp_path / "new").exists()


def test_a_run_takes_a_folder_in_writes_on_and_gives_it_back(folder, tmp_path, capsys):
    run, back = tmp_path / "run", tmp_path / "back"
    main([str(folder), "--workdir", str(run)])
    same(load_model(run / "model").params, PARAMS)
    SCRIPT.main(["generate", "--workdir", str(run), "--prompt", "the cat", "--tokens", "4"])
    assert capsys.readouterr().out.splitlines()[1].startswith("the cat")
    main([str(back), "--workdir", str(run), "--export"])
    for path in folder.iterdir():
        assert (back / path.name).read_bytes() == path.read_bytes()
    for arguments in ([folder, "--workdir", run], [back, "--workdir", run, "--export"]):
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        assert leaving.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert "choose another folder" in told
        assert told.count("\n") == 1


def test_a_text_is_written_up_to_its_end_and_no_further(tmp_path, capsys, monkeypatch):
    (end,) = WIDER.ends
    table = PARAMS["embed"]["embedding"].copy()
    table[end] *= 9
    norm = {"scale": np.zeros(12, np.float32), "bias": table[end]}  # so the end is always next
    decoder = PARAMS["decoder"] | {"norm": norm}
    params = {**PARAMS, "embed": {"embedding": table}, "decoder": decoder}
    save_gpt2(tmp_path / "gpt2", MODEL, params, WIDER)
    main([str(tmp_path / "gpt2"), "--workdir", str(tmp_path / "run")])
    stops = []
    spied = lambda *args, **kwargs: stops.append(kwargs["stop"]) or stream(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr("jaxdl.run.writing.stream", spied)
    for options in ("0",), ("0.1",), ("0", "--stop", "a"):
        capsys.readouterr()
        SCRIPT.main(["generate", "--workdir", str(tmp_path / "run"), "--prompt", "the cat",
                     "--tokens", "4", "--temperature", *options])  # fmt: skip
        assert capsys.readouterr().out == "the cat\n"
    assert stops == [(end,), (end,), (end, *WIDER.encode("a"))]


def test_a_run_of_our_own_is_exported_with_its_own_vocabulary(tmp_path, capsys):
    model = MODEL.clone(vocabulary=BPE.size)
    save_model(tmp_path / "run" / "model", model, drawn(model))
    BPE.save(tmp_path / "run" / "model")
    main([str(tmp_path / "out"), "--workdir", str(tmp_path / "run"), "--export"])
    loaded = load_gpt2(tmp_path / "out")
    assert loaded.model == model
    np.testing.assert_array_equal(loaded.tokenizer.encode(TEXT), BPE.encode(TEXT))
    assert (loaded.tokenizer.unwritten, loaded.tokenizer.ends) == ((0,), (1,))
    CharTokenizer.train("abc").save(tmp_path / "run" / "model")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "no"), "--workdir", str(tmp_path / "run"), "--export"])
    assert "TransformerLM and CharTokenizer, which are no GPT-2" in capsys.readouterr().err
