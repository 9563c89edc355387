"""AUROC by hospital, figures, and the report that carries them."""
