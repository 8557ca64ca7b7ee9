//! A whole server on loopback: its API, joining, and its store.

mod api;
mod joining;
mod log;
mod measure;
mod migrations;
mod networks;
mod placement;
mod store;
mod support;
