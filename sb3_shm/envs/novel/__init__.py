"""Classic control without velocities."""
