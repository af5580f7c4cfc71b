"""What travels inside every checkpoint: flat files that need torch and transformers only."""
