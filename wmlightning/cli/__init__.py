"""The command line: the only package that uses LightningCLI and reads arguments."""
