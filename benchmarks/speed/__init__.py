"""What do fits, look-ups, scores and training steps take?"""
