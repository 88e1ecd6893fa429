"""State, step, sharding, checkpoints, stages and the loop that runs them."""
