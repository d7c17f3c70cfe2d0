"""The base model, its LoRA adapter, and the rows that it reads."""
