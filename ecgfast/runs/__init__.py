"""What finished runs are known by: whom they learned from, and how they score."""
