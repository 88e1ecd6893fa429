"""A stage from its first weights to its last: state, step, loop, and what they leave."""
