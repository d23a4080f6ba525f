"""Serving: answers by OpenAI's API in real time and in batches, with keys, limits, costs and a log of every request."""
