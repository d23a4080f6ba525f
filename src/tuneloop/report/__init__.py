"""Reports: what a run folder holds, as a page and as text on the terminal."""
