"""One file an experiment: its config, its presets, its command."""
