//! From a PUBLISH to the connections, arbiters and groups that want it.
