"""Formats of devices and archives, one module each, with what they share."""
