"""The `hf-compact` command: one short file for each verb."""
