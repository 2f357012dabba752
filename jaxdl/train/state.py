"""The state of training: arrays only, and all of them, so that it *is* the checkpoint."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxdl.types import Array, Key, ModelState, Params, PyTree

Init = Callable[[Key], tuple[Params, ModelState]]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes. Functions are closed over, never stored here."""

    step: Array  # int32 scalar: the steps taken, and the number of the next batch
    key: Key  # the run's key; never changes, every draw is derived from it and the step
    params: Params
    model_state: ModelState  # what the model itself updates; {} for most
    opt_state: optax.OptState
    ema: Params | None = None  # exponential moving average of the parameters
    carry: PyTree = None  # of streams: what each row hands to its successor in the next batch

    @classmethod
    def create(
        cls,
        init: Init,
        tx: optax.GradientTransformation,
        key: Key,
        *,
        ema: bool = False,
        carry: PyTree = None,
    ) -> "TrainState":
        """Initialises a state from `init(key) -> (params, model_state)`; pure, to be jitted.

        `carry` is what the rows of the first batch begin with, each leaf with leading axis b.
        """
        params, model_state = init(jax.random.fold_in(key, 0))
        return cls(
            step=jnp.int32(0),
            key=key,
            params=params,
            model_state=model_state,
            opt_state=tx.init(params),
            # A copy: a buffer that appears twice in the state could not be donated.
            ema=jax.tree.map(jnp.copy, params) if ema else None,
            carry=jax.tree.map(jnp.copy, carry),
        )

    @property
    def weights(self) -> Params:
        """The parameters to evaluate, sample and export with: the average where there is one."""
        return self.params if self.ema is None else self.ema


def leaf_name(path: tuple) -> str:
    """Joins a tree path as `params/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
