"""A model as a folder that anyone can read: model.safetensors and config.json.

The parameters lie under their paths, joined by dots (`conv1.kernel`), in the layout of Flax; what
the model keeps beside them, under the name of its collection (`batch_stats.norm.mean`). The config
names the class, its fields, and what a user has to know beside it (`about`).
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
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import jaxdl.models
from jaxdl.errors import UserError
from jaxdl.types import ModelState, Params

# Fields that say how to compute, not what the network is.
_SKIPPED = {"parent", "name", "dtype", "param_dtype", "axis_name"}
# What a model keeps beside its parameters, stored under its own name.
_STATES = ("batch_stats",)


class LoadedModel(NamedTuple):
    """A model read from its folder: `model.apply({"params": params, **model_state}, ...)`."""

    model: nn.Module
    params: Params
    model_state: ModelState  # running statistics; {} for most
    about: dict[str, Any]


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Flattens nested parameters to {"conv1.kernel": array}, on the host."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep=".")
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file, whoever wrote it, under their names.

    bfloat16 comes as the type of `ml_dtypes`. Raises UserError, naming the file, where it is
    missing, damaged, or holds a type that NumPy has no name for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing, or no file")
    try:
        return load_file(path)
    # What the reader does on a type that it does not know, such as float8, is to look it up.
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def save_model(
    folder: str | Path,
    model: nn.Module,
    params: Params,
    *,
    model_state: ModelState | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model.safetensors` and `config.json` into `folder`, which is made if need be.

    Each file is written beside its place and then renamed, the config last: a folder with a
    config holds a whole model. Raises TypeError, before it writes, where a field of the model or
    `about` is nothing that JSON can say.
    """
    folder = Path(folder)
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in _SKIPPED
    }
    config = {"model": type(model).__name__, "config": fields, "about": dict(about or {})}
    text = json.dumps(config, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)  # it would describe another model
    weights, described = folder / "model.safetensors.tmp", folder / "config.json.tmp"
    save_file(flatten({**params, **(model_state or {})}), weights, metadata={"format": "jaxdl"})
    weights.replace(weights.with_suffix(""))
    described.write_text(text)
    described.replace(described.with_suffix(""))


def load_model(folder: str | Path) -> LoadedModel:
    """Reads what `save_model` wrote; the parameters are float32 arrays of NumPy.

    Raises UserError where a file is missing or damaged, where the class is none of
    `jaxdl.models` or has no such fields, or where the parameters are not those of the model,
    naming the first that differs. They are checked where `about` has an "input_shape",
    and an "input_dtype" if that is not float32.
    """
    folder = Path(folder)
    config = _read_config(folder)
    model = _make_model(folder, config)
    arrays = load_arrays(folder / "model.safetensors")
    flat = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    about = config["about"]
    if "input_shape" in about:
        x = jax.ShapeDtypeStruct((1, *about["input_shape"]), about.get("input_dtype", "float32"))
        check_parameters(flat, model, x, where=str(folder))
    params = flax.traverse_util.unflatten_dict(flat, sep=".")
    model_state = {name: params.pop(name) for name in _STATES if name in params}
    return LoadedModel(model, params, model_state, about)


def check_parameters(
    flat: Mapping[str, np.ndarray], model: nn.Module, *inputs: jax.ShapeDtypeStruct, where: str
) -> None:
    """Raises UserError unless `flat` has exactly the arrays that `model` has for such inputs."""
    init = lambda *inputs: model.init(jax.random.key(0), *inputs, train=False)  # noqa: E731
    try:
        shapes = dict(jax.eval_shape(init, *inputs))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: no {type(model).__name__} like that: {error}") from error
    shapes = {**shapes.pop("params"), **shapes}
    wanted: dict[str, Any] = flax.traverse_util.flatten_dict(shapes, sep=".")
    for name in [*wanted, *flat]:
        there = flat[name].shape if name in flat else "absent"
        here = wanted[name].shape if name in wanted else "absent"
        if there != here:
            raise UserError(
                f"{where}: {name} is {there} there, and {here} in {type(model).__name__}"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: no model was exported here") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    kinds = {"model": str, "config": dict, "about": dict}
    for name, kind in kinds.items():
        if not isinstance(config, dict) or not isinstance(config.get(name), kind):
            raise UserError(f"{path} has no {name!r}: it is no model of jaxdl")
    return config


def _make_model(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    name = config["model"]
    if name not in jaxdl.models.__all__:
        raise UserError(f"{folder} holds a {name}; jaxdl has {', '.join(jaxdl.models.__all__)}")
    fields = {key: _tuples(value) for key, value in config["config"].items()}
    try:
        return getattr(jaxdl.models, name)(**fields)
    except TypeError as error:
        raise UserError(f"{folder}: {error}") from error


def _tuples(value: Any) -> Any:
    """Turns JSON's lists back into the tuples that they were; a module's fields are hashable."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
