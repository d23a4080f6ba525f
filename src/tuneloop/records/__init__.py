"""What is in files and crosses stages: one file for each record, each with its version."""
