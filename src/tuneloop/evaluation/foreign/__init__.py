"""Evaluations that other tools have run: read into one record, aligned with each other, and ours as their tasks."""
