"""What happens around learning: collecting, evaluating, guarding, saving, reporting."""
