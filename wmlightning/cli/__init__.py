"""The command line: the only place that knows LightningCLI and the words that are typed."""
