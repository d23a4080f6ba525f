"""`tuneloop ui`: pages over the files and the stores that are already there. It keeps no state of its own."""
