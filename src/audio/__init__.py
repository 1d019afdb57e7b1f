"""From encoded audio to waveforms."""
