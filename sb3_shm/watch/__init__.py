"""A page that shows an agent's memory while it plays: ``sb3-shm watch``."""
