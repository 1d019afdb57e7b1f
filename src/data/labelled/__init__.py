"""Labelled clips: class names, splits, batches."""
