"""POPGym's tasks."""
