"""Traces of other tools become stored requests and feedback."""
