"""Encoders on disk: one file a format, each from and to `Stored`. No lightning, wandb or datasets in here."""
