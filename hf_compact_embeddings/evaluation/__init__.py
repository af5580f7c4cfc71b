"""Fidelity, tasks and reports."""
