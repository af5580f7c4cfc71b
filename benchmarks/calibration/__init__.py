"""What does distillation on unlabelled text bring back?"""
