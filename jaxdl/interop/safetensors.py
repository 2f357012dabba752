"""A model as a folder that anyone can read: model.safetensors and config.json.

The parameters lie under their paths, joined by dots (`conv1.kernel`), in the layout of Flax. The
config names the class, its fields, and what a user has to know beside it (`about`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import jaxdl.models
from jaxdl.errors import UserError
from jaxdl.types import Params

# Fields that say how to compute, not what the network is.
_SKIPPED = {"parent", "name", "dtype", "param_dtype"}


class LoadedModel(NamedTuple):
    """A model read from its folder: `model.apply({"params": params}, ...)`."""

    model: nn.Module
    params: Params
    about: dict[str, Any]


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Flattens nested parameters to {"conv1.kernel": array}, on the host."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep=".")
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


def save_model(
    folder: str | Path, model: nn.Module, params: Params, *, about: Mapping[str, Any] | None = None
) -> None:
    """Writes `model.safetensors` and `config.json` into `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in _SKIPPED
    }
    config = {"model": type(model).__name__, "config": fields, "about": dict(about or {})}
    save_file(flatten(params), folder / "model.safetensors", metadata={"format": "jaxdl"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_model(folder: str | Path) -> LoadedModel:
    """Reads what `save_model` wrote; the parameters are float32 arrays of NumPy.

    Raises UserError where a file is missing or damaged, where the class is none of
    `jaxdl.models`, or where the parameters are not those of the model, naming the first that
    differs.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        flat = load_file(folder / "model.safetensors")
        cls, fields = config["model"], config["config"]
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or folder} is missing: no model was exported here"
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the model in {folder} cannot be read: {error}") from error
    if cls not in jaxdl.models.__all__:
        raise UserError(f"{folder} holds a {cls}; jaxdl has {', '.join(jaxdl.models.__all__)}")
    tuples = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    model = getattr(jaxdl.models, cls)(**tuples)
    about = config.get("about", {})
    if "input_shape" in about:
        check_parameters(flat, model, tuple(about["input_shape"]), where=str(folder))
    return LoadedModel(model, flax.traverse_util.unflatten_dict(flat, sep="."), about)


def check_parameters(
    flat: Mapping[str, np.ndarray], model: nn.Module, input_shape: tuple[int, ...], *, where: str
) -> None:
    """Raises UserError unless `flat` has exactly the parameters of `model`, in their shapes."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)["params"]
    wanted = flax.traverse_util.flatten_dict(shapes, sep=".")
    for name in [*wanted, *flat]:
        there = flat[name].shape if name in flat else "absent"
        here = wanted[name].shape if name in wanted else "absent"
        if there != here:
            raise UserError(
                f"{where}: {name} is {there} there, and {here} in {type(model).__name__}"
            )
