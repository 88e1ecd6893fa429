"""Networks, as Flax Linen modules: pure functions of parameters and arrays."""
