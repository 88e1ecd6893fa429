"""Devices: processes that work as one, sharding, and what the compiler is told."""
