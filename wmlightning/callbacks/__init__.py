"""What happens around learning: pictures drawn while a stage trains, codes written while it predicts."""
