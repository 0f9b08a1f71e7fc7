//! The state machine of a group: persistent sessions, queues, retained messages, wills.
