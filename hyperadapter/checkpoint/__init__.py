"""Checkpoints: written beside and renamed, with a manifest that comes last."""
