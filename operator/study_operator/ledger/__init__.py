"""What is known of a study: trials, stages, what follows from them, and the status that they are written to."""
