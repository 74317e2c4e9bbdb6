"""What makes one device faster, and changes no result but by rounding."""
