"""Greedy answers, how good they are, and the final evaluation on the test set."""
