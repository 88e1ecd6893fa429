"""Where images come from. Every batch is a function of (seed, stage, step)."""
