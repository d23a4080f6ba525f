"""`python -m tuneloop`."""

from tuneloop.cli.main import entry

if __name__ == "__main__":
    entry()
