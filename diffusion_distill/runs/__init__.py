"""What a run leaves: its workdir, its checkpoints, a trained network."""
