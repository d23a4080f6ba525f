"""Registered versions of artifacts: which is in use, whether it is intact, what the gate said of it."""
