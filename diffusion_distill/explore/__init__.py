"""A local page to look at what a run can draw: world draws, page shows, serve hands it out."""
