"""Fully sharded data parallelism (Rajbhandari et al. 2020, arXiv:1910.02054), around a loss.

That the state is split says nothing of how it is computed with: left to itself XLA may send
activations to the parts of a parameter, instead of the parts of the parameter to each other.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.lax import with_sharding_constraint
from jax.sharding import NamedSharding, PartitionSpec

from jaxdl.metrics import Mean
from jaxdl.train.rules import without
from jaxdl.train.sharding import Placement
from jaxdl.train.step import Aux, Loss
from jaxdl.types import Array, Batch, Key, ModelState, Params


def fully_sharded(loss: Loss, placement: Placement) -> Loss:
    """Makes a loss that gathers each parameter where it is used, on the way back once more.

    The gradient comes out split as the parameter is: it is reduced and scattered. Where the mesh
    has no `fsdp` the loss is returned as it is.
    """
    if placement.mesh.shape["fsdp"] == 1:
        return loss

    def gather(parameter: Array, split: NamedSharding) -> Array:
        whole = NamedSharding(split.mesh, PartitionSpec(*without(tuple(split.spec), "fsdp")))
        # The transpose of a constraint is the same constraint: on the way back the gradient is
        # first whole, then split, which XLA makes one reduce-scatter.
        return with_sharding_constraint(with_sharding_constraint(parameter, split), whole)

    def gathered(
        params: Params, model_state: ModelState, batch: Batch, key: Key, *, train: bool
    ) -> tuple[Mean, Aux]:
        def compute(params: Params) -> tuple[Mean, Aux]:
            params = jax.tree.map(gather, params, placement.parameter_shardings(params))
            return loss(params, model_state, batch, key, train=train)

        # Everything is kept for the way back but what was gathered: nowhere is the model whole.
        return jax.checkpoint(compute, policy=_not_gathered)(params)

    return gathered


def _not_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name != "sharding_constraint"
