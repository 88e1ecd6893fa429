"""What a person sees: flags and errors, lines, progress."""
