//! Sockets that accept clients.
