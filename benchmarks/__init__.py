"""Side by side with PyTorch, in turn, on the same machine."""

import os

# Settled before JAX starts: two libraries share the GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
