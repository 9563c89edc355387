"""Order, engines and the loader: from a store to batches of patches on a device."""
