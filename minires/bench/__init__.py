"""How fast, and how near to what the machine can do: public."""
