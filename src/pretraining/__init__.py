"""Pretraining: objective, plan, checks and pictures."""
