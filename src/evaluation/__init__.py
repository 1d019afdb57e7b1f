"""Measuring an encoder: embeddings of labelled clips, probes and statistics on them. Pure functions of arrays."""
