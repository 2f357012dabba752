"""jaxdl: deep learning's canonical families as pure functions in JAX and Flax, with one trainer."""

from jaxdl.backend import guard_cpu

__version__ = "0.1.0"

# XLA reads its flags once, when the first array is made; importing jaxdl comes before that.
guard_cpu()
