"""What does the loss of directions bring over SVD?"""
