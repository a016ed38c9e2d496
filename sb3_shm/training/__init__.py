"""What both algorithms share beside policies: checks, transfers to a device, files."""
