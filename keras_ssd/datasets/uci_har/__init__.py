"""Human activity recognition using smartphones (UCI)."""
