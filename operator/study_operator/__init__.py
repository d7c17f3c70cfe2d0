"""Handles a fine-tuning study: proposes trials, promotes the best, judges the winner."""
