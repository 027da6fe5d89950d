"""Every place that touches another package's private parts."""
