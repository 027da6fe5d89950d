"""The gRPC adapter: server, interceptor, health, reflection and channelz."""
