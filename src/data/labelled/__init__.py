"""Labelled clips: vocabularies, splits, batches."""
