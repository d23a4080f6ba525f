"""Evaluation: from answers to metrics with intervals, comparisons and a verdict."""
