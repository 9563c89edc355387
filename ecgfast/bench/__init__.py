"""Measured rates: timing, result rows, the cases, and estimates made from them."""
