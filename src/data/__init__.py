"""From audio files, shards and datasets to batches of waveforms. Nothing here depends on models."""
