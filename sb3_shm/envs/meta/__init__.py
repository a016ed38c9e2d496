"""Meta-learning tasks: Wind and Point Robot."""
