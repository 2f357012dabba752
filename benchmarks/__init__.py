"""Side by side with PyTorch, in turn, on the same machine."""
