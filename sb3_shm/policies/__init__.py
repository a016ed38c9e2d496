"""What the policies of both algorithms share: encoder, position and memory (the trunk), and the carrying of states."""
