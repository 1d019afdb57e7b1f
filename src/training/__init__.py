"""Code shared by all training runs: trainer, run folder, callbacks, distributed training."""
