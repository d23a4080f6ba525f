"""Training: one loop for every method and loss, watched and resumable."""
