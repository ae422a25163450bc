"""Models, inputs and losses that are named by text, as on a command line or in a configuration file."""
