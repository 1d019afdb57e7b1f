"""Masked-autoencoder pretraining: LightningModule, plan, probes and reconstruction pictures."""
