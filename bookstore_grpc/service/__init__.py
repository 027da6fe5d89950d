"""What each RPC does. It knows no transport."""
