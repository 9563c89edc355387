"""The study's whole experiment on a store: `ecgfast reproduce`."""
