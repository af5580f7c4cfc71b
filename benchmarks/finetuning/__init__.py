"""How do calibrated checkpoints fine-tune, beside the dense model?"""
