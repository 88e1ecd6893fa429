"""How good images are: feature networks, distances, and names that say what was measured."""
