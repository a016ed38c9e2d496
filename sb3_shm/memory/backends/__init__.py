"""Who computes the Hadamard recurrence, and what else is worth a kernel."""
