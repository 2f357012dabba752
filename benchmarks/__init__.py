"""Side by side with PyTorch, on the same machine, in the same process."""
