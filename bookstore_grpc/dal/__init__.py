"""The floor that speaks SQL and knows no gRPC."""
