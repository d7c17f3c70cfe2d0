"""Trains, continues and evaluates one LoRA trial; knows nothing of the operator."""
