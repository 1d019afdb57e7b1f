"""Audio classification: linear probe and fine-tuning, reports, prediction."""
