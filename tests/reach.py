"""What a network looks at, by gradients: an output feels what its gradient is not zero of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def reach(model, params, *inputs, sides=1):
    """Finds how much each output feels each embedded token: of each call of `embed`, [b t b s].

    That is the greatest gradient of a sum of its logits by the numbers that the token becomes.
    The first inputs are the tokens of the calls, of which there are `sides`.
    """

    def outputs(nudges):
        waiting = iter(nudges)

        def nudge(call, args, kwargs, context):
            y = call(*args, **kwargs)
            embeds = context.module.name == "embed" and context.method_name == "__call__"
            return y + next(waiting) if embeds else y

        with nn.intercept_methods(nudge):
            logits = model.apply({"params": params}, *inputs, train=False)
        logits = logits[0] if isinstance(logits, tuple) else logits
        assert next(waiting, None) is None
        return logits @ jnp.sin(1.0 + jnp.arange(logits.shape[-1]))

    nudges = [jnp.zeros((*tokens.shape, model.width)) for tokens in inputs[:sides]]
    return [np.abs(x).max(-1) for x in jax.jit(jax.jacrev(outputs))(nudges)]


def assert_reach(felt, seen):
    """Asserts that outputs [b t] feel the tokens [b s] of their own row that are seen [b t s].

    All others they do not feel at all: their gradient is zero, not only small.
    """
    rows = np.arange(len(felt))
    everywhere = np.zeros(felt.shape, bool)
    everywhere[rows, :, rows] = seen
    assert felt[everywhere].min() > 1e-6
    assert not felt[~everywhere].any()
