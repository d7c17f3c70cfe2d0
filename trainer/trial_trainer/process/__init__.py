"""Ranks under a launcher, and what is kept of a process's log."""
