//! The object protocol: what a source serves and a mirror fetches, over TLS or a Unix socket.
