"""Replay: searches drive arms that were recorded to full length, on a simulated clock.

    recorded   the arms: what was measured, how long it took, and which of them an arm off the table stands for
    clock      slots, runs, and the trace that a search leaves
    product    the operator's own tick and designers on that clock
    rivals     what it is compared with, on the same arms and clock
    scores     what a trace is worth: compute to a target, distance to the floor, with intervals

`replay.py` beside this package is the command.
"""
