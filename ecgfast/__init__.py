"""Raw 12-lead ECG files to a GPU-decodable store, and masked autoencoders trained on it."""
