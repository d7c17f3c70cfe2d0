"""Which arms to try next: Ax, in a process of its own."""
