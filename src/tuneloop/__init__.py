"""tuneloop: from a folder of raw examples to a fine-tuned Llama 3, measured and documented."""

__version__ = "0.1.0"
