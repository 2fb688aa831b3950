"""What happens inside a residual network: public."""
