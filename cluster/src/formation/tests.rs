//! Nodes with real transports over loopback and disks that can fail; and the rules of the ledger, whatever happens in
//! whatever order.

mod loopback;
mod rules;
