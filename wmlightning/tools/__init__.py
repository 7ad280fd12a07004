"""What you hold in your hand: collecting, evaluating, looking at data, and running a whole experiment."""
