"""The server: queries over HTTP and gRPC, answered by the path that the scheduler chooses."""
