"""The papers' experiments, each a function and a command: public."""
