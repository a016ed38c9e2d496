"""The grid worlds Visual Match and Key-to-Door."""
