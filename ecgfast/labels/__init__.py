"""Labels and splits of a store, and the expressions that choose records by them."""
