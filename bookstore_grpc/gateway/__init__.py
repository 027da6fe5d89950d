"""The HTTP/JSON adapter: `google.api.http` transcoding for any service."""
