"""Find α: sweep, choose, and tell gain from luck."""
