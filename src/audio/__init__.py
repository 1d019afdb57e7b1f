"""Bytes to waveform."""
