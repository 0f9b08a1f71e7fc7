//! The clauses of the specifications, over a real socket. `docs/reference/conformance.md` lists which test shows which.

mod auth;
mod connect;
mod delivery;
mod malformed;
mod publish;
mod subscribe;

use kentongan_proto::mqtt::ProtocolVersion;

/// Where both versions agree, both are tried.
const BOTH: [ProtocolVersion; 2] = [ProtocolVersion::V3_1_1, ProtocolVersion::V5];
