"""Unlabelled clips: order, crops, batches."""
