"""GPT-2 from a folder of Hugging Face's and back, and into the folder of a run.

python -m jaxdl.interop.gpt2 FOLDER --workdir RUN             # then, for example:
python -m experiments.language_modeling generate --workdir RUN --prompt "In the beginning"
python -m jaxdl.interop.gpt2 FOLDER --workdir RUN --export    # from a run to a new folder

config.json         sizes, and what there is no choice of here
model.safetensors   the weights, or model.safetensors.index.json and the pieces that it names
vocab.json, merges.txt, or tokenizer.json instead: see `jaxdl.data.gpt2_tokenizer`
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from safetensors.numpy import save_file

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.gpt2_tokenizer import GPT2Tokenizer
from jaxdl.data.tokenizers import load_tokenizer
from jaxdl.errors import UserError
from jaxdl.interop.safetensors import check_parameters, flatten, load_arrays, load_model, save_model
from jaxdl.interop.torch_gpt2 import HEAD, gpt2_from_torch, gpt2_to_torch
from jaxdl.models import TransformerLM
from jaxdl.types import Params

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# Our names of sizes, theirs, and what a config means that is silent of them.
_SIZES = {
    "vocabulary": ("vocab_size", 50257),
    "width": ("n_embd", 768),
    "layers": ("n_layer", 12),
    "heads": ("n_head", 12),
    "limit": ("n_positions", 1024),
}
_DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
# What is computed here; the first is what a silent config means.
_COMPUTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


class GPT2(NamedTuple):
    """A model, as in `model.apply({"params": params}, tokens, train=False)`, and its tokeniser."""

    model: TransformerLM
    params: Params  # float32 arrays of NumPy
    tokenizer: GPT2Tokenizer


def load_gpt2(folder: str | Path) -> GPT2:
    """Reads a GPT-2, and its kin of the same architecture, from a folder of Hugging Face's.

    Raises UserError, in one line, where a file is missing or damaged, where the config asks for
    what is not computed here, and where weights or tokeniser do not fit the config.
    """
    folder = Path(folder)
    model = _make_model(_read_json(folder / CONFIG), where=str(folder / CONFIG))
    weights = _load_weights(folder)
    try:
        params = gpt2_from_torch(weights)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    tokens = jax.ShapeDtypeStruct((1, 1), "int32")
    check_parameters(flatten(params), model, tokens, where=str(folder))
    return GPT2(model, params, GPT2Tokenizer.read(folder, size=model.vocabulary))


def save_gpt2(
    folder: str | Path, model: TransformerLM, params: Params, tokenizer: GPT2Tokenizer
) -> None:
    """Writes a folder that `load_gpt2` reads, and Hugging Face's `from_pretrained`.

    Weights are float32, under their names. Each file is written beside its place and then renamed,
    the config last. Raises UserError, before it writes, where the model is no GPT-2, or has other
    parameters, or other tokens than the tokeniser.
    """
    folder = Path(folder)
    if model.style != "gpt2" or model.kv_heads not in (None, model.heads):
        raise UserError("GPT-2 is of style 'gpt2', with as many heads of keys as of queries")
    if model.vocabulary != tokenizer.size:
        raise UserError(f"the model has {model.vocabulary} tokens, its tokeniser {tokenizer.size}")
    tokens = jax.ShapeDtypeStruct((1, 1), "int32")
    check_parameters(flatten(params), model, tokens, where="the parameters")
    state = gpt2_to_torch(params)
    del state[HEAD]  # which the config says is the embedding
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # it would describe another model
    tokenizer.write(folder)
    weights, described = folder / f"{WEIGHTS}.tmp", folder / f"{CONFIG}.tmp"
    save_file(state, weights, metadata={"format": "pt"})
    weights.replace(weights.with_suffix(""))
    described.write_text(json.dumps(_config(model, tokenizer), indent=2) + "\n")
    described.replace(described.with_suffix(""))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no fields")
    return value


def _make_model(config: Mapping[str, Any], *, where: str) -> TransformerLM:
    """Makes the network that a config describes; raises UserError where it is another one."""
    if config.get("model_type") != "gpt2":
        raise UserError(f"{where}: model_type is {config.get('model_type')!r}, not 'gpt2'")
    for name, computed in _COMPUTED.items():
        if config.get(name, computed[0]) not in computed:
            choice = " or ".join(map(repr, computed))
            raise UserError(f"{where}: {name} is {config[name]!r}, and {choice} is computed here")
    sizes = {ours: config.get(theirs, silent) for ours, (theirs, silent) in _SIZES.items()}
    for ours, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{where}: {_SIZES[ours][0]} is {size!r}, not a number above 0")
    if config.get("n_inner") not in (None, 4 * sizes["width"]):
        raise UserError(f"{where}: n_inner is {config['n_inner']!r}, and 4 n_embd is computed here")
    dropouts = {config.get(name, 0.1) for name in _DROPOUTS}
    if len(dropouts) > 1:
        raise UserError(f"{where}: {', '.join(_DROPOUTS)} differ, and are one number here")
    return TransformerLM(**sizes, dropout=dropouts.pop())


def _config(model: TransformerLM, tokenizer: GPT2Tokenizer) -> dict[str, Any]:
    """Describes a network as Hugging Face does: `_make_model` inverted."""
    sizes = {theirs: getattr(model, ours) for ours, (theirs, _) in _SIZES.items()}
    end = next(iter(tokenizer.ends), None)
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes, "n_inner": None,
        **{name: computed[0] for name, computed in _COMPUTED.items()},
        **dict.fromkeys(_DROPOUTS, model.dropout), "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip


def _load_weights(folder: Path) -> dict[str, np.ndarray]:
    """Reads the weights, which may lie in pieces, each with arrays of its own."""
    if (folder / WEIGHTS).exists():
        return load_arrays(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} has no {WEIGHTS}, which alone is read, no pytorch_model.bin")
    where = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict):
        raise UserError(f"{folder / INDEX} has no weight_map")
    weights: dict[str, np.ndarray] = {}
    for piece in sorted(set(where.values())):
        weights |= load_arrays(folder / piece)
    return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Makes the GPT-2 of a folder the model of a run, so that the run's verbs can use it."""

    folder: tyro.conf.Positional[Path]
    """Folder of Hugging Face's: config.json, model.safetensors, vocab.json and merges.txt."""
    workdir: Path
    """Folder of the run, whose model is in its folder model/."""
    export: bool = False
    """Go the other way: write the run's model into a new folder."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a mistake is told in one line and ends the process with status 2."""
    options = tyro.cli(Options, args=arguments, prog="python -m jaxdl.interop.gpt2")
    try:
        (export_run if options.export else import_run)(options.folder, options.workdir)
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


def import_run(folder: Path, workdir: Path) -> None:
    """Writes the GPT-2 of a folder into the folder of a run; raises UserError where one is."""
    for held in (workdir, workdir / "model"):
        if (held / CONFIG).exists():
            raise UserError(f"--workdir {workdir} holds a run or a model: choose another folder")
    model, params, tokenizer = load_gpt2(folder)
    (workdir / "model").mkdir(parents=True, exist_ok=True)
    tokenizer.save(workdir / "model")
    about = {"input_shape": [model.limit], "input_dtype": "int32"}
    save_model(workdir / "model", model, params, about=about)
    count = sum(array.size for array in jax.tree.leaves(params))
    print(f"{workdir / 'model'}: {count:,} parameters, {tokenizer.size:,} tokens")


def export_run(folder: Path, workdir: Path) -> None:
    """Writes the model of a run into a new folder; raises UserError where it is no GPT-2."""
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} holds a model: choose another folder")
    model, params, _, _ = load_model(workdir / "model")
    tokenizer = load_tokenizer(workdir / "model")
    if isinstance(tokenizer, BPETokenizer):
        tokenizer = GPT2Tokenizer.of(tokenizer)
    if not isinstance(model, TransformerLM) or not isinstance(tokenizer, GPT2Tokenizer):
        names = type(model).__name__, type(tokenizer).__name__
        raise UserError(f"--workdir {workdir} holds {' and '.join(names)}, which are no GPT-2")
    save_gpt2(folder, model, params, tokenizer)
    print(f"{folder}: for GPT2LMHeadModel.from_pretrained")


if __name__ == "__main__":
    main()
