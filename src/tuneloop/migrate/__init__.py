"""Leaving a hosted service: what is there, a copy of it, its models' answers as the standard for a successor."""
