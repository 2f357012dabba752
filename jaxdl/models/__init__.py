"""Networks, and nothing but networks: Flax modules with typed shapes and no hidden state."""

from jaxdl.models.cnn import ReferenceCNN, ResidualCNN
from jaxdl.models.mlp import MLP

__all__ = ["MLP", "ReferenceCNN", "ResidualCNN"]
