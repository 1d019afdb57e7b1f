"""Audio from wherever it lies to batches of waveforms. Nothing here knows of models."""
