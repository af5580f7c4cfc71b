"""What is promised of saving, and of edges."""
