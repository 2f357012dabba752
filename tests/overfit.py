"""One batch, learnt by heart: what cannot do that cannot learn."""

import jax
import optax


def overfit(loss, params, *, learning_rate=1e-2, steps=100):
    """Minimises `loss(params)` by Adam; returns the parameters, and the loss before each step."""
    tx = optax.adam(learning_rate)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return params, losses
