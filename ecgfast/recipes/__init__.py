"""Open data sets with their published labels and folds: `ecgfast recipe`."""
