"""Masked audio encoders: pretrain, measure and use them (Dasheng, Interspeech 2024)."""
