"""Questions to a model: rows in, answers out (`predict`), and one at a time (`chat`), formatted as in training."""
