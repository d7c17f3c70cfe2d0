"""Trains, continues and judges one LoRA trial; knows nothing of the operator."""
