"""Runs that need an accelerator."""
