"""A laboratory: a small trained model and its forgetful specialist, and the synthetic language they speak."""
