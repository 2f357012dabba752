"""What a person meets: the command, the run folder, the bar, the figures."""
