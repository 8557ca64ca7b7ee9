//! A whole server on loopback: its API, joining, and its store.

mod api;
mod joining;
mod store;
mod support;
