"""Evaluation of an encoder: embeddings of labeled clips, probes and metrics. Mostly pure functions of arrays."""
