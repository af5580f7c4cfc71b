"""What do inputs without a vocabulary give, and cost?"""
