"""Trained models for those who only translate: bundles, their loader, and folded models."""
