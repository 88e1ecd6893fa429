"""The maths of diffusion and of progressive distillation: pure functions of arrays."""
