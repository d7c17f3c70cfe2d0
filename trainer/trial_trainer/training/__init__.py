"""One rung of one trial, and its checkpoints."""
