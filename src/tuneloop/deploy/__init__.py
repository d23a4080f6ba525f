"""Hosts that serve an artifact and clusters that train a recipe: a file each."""
