from sb3_shm.memory.backends.reference import hadamard_recurrence  # noqa: F401  # replaced by the fused kernel in a moment
