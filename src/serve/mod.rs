//! What an agent answers on its local socket.
