"""The version of the package: pyproject.toml reads it here, and so does every module that needs it."""

__version__ = "0.1.0"
