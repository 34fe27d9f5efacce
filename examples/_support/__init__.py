"""What the examples share: reading data, comparing trainings."""
