"""A Flax module as two pure functions of (parameters, what the model itself keeps)."""

from typing import Any

import flax.linen as nn

from jaxdl.types import Key, ModelState, Params


def initialise(model: nn.Module, key: Key, *inputs: Any) -> tuple[Params, ModelState]:
    """Makes the parameters, and what the model keeps beside them: {} for most."""
    variables = dict(model.init(key, *inputs, train=False))
    return variables.pop("params"), variables


def apply(
    model: nn.Module,
    params: Params,
    model_state: ModelState,
    *inputs: Any,
    train: bool = False,
    rngs: dict[str, Key] | None = None,
) -> tuple[Any, ModelState]:
    """Computes what the model makes of its inputs, and its next state.

    Only training changes the state: running statistics, where there are any.
    """
    variables: dict[str, Any] = {"params": params, **model_state}
    if not train:
        return model.apply(variables, *inputs, train=False, rngs=rngs), model_state
    changed = list(model_state)
    output, state = model.apply(variables, *inputs, train=True, rngs=rngs, mutable=changed)
    return output, dict(state)
