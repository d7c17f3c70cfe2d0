"""Handles a fine-tuning study: proposes trials, promotes the best, evaluates the winner."""
