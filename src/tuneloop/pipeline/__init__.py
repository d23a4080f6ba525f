"""The main job and its stages, from files to files, and what evaluates, predicts, compares and searches."""
