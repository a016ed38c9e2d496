"""Looks at a memory while it trains and plays."""
