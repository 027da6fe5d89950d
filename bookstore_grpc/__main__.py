"""`python -m bookstore_grpc` is the command `bookstore`."""

from bookstore_grpc.cli import main

if __name__ == "__main__":
    main()
