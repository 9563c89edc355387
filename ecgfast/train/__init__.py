"""Pretraining and fine-tuning: from a store to a run folder."""
