"""Attention against a formula in NumPy, and positions by segment."""

import jax.numpy as jnp
import numpy as np

from jaxdl.layers.attention import KeysValues, attend
from jaxdl.layers.embed import places, sinusoids


def test_attention_is_a_softmax_of_what_the_mask_leaves():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, size, 3, 4)).astype(np.float32) for size in (5, 6, 6))
    mask = rng.random((2, 5, 6)) < 0.6
    mask[..., 0] = True
    out, weights = attend(*map(jnp.asarray, (q,)), KeysValues(jnp.asarray(k), jnp.asarray(v)),
                          jnp.asarray(mask))  # fmt: skip
    for b in range(2):
        for t in range(5):
            for n in range(3):
                here = mask[b, t]
                e = np.exp(k[b, here, n] @ q[b, t, n] / 2)
                np.testing.assert_allclose(weights[b, n, t][here], e / e.sum(), rtol=1e-5)
                assert not np.asarray(weights)[b, n, t][~here].any()
                expected = e @ v[b, here, n] / e.sum()
                np.testing.assert_allclose(out[b, t, n], expected, rtol=1e-4, atol=1e-5)


def test_positions_are_the_waves_of_the_paper():
    waves = np.asarray(sinusoids(jnp.array([[0, 7]]), 6))
    for i in range(3):
        angle = 7 / 10_000 ** (2 * i / 6)
        np.testing.assert_allclose(waves[0, 1, [i, 3 + i]], [np.sin(angle), np.cos(angle)],
                                   rtol=1e-5)  # fmt: skip
    assert waves[0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_places_begin_anew_in_every_segment():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 3, 0, 0, 0]])
    assert places(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 0, 1, 2]]
